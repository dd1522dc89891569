#include "gateway/text/stop_matcher.h"

#include <algorithm>

namespace switchyard::gateway {
namespace {

// fallback[i]: the length of the longest proper prefix of the text that text[0..i] also ends with.
std::vector<uint32_t> FallbackOf(const std::string& text) {
  std::vector<uint32_t> fallback(text.size(), 0);
  for (size_t i = 1; i < text.size(); ++i) {
    uint32_t length = fallback[i - 1];
    while (length > 0 && text[length] != text[i]) length = fallback[length - 1];
    fallback[i] = text[length] == text[i] ? length + 1 : 0;
  }
  return fallback;
}

}  // namespace

StopMatcher::StopMatcher(const std::vector<std::string>& stops, bool include_stop)
    : include_stop_(include_stop) {
  for (const std::string& stop : stops) {
    if (!stop.empty()) patterns_.push_back({stop, FallbackOf(stop)});
  }
  // Longest first: of several that end at the same byte the first found counts.
  std::stable_sort(patterns_.begin(), patterns_.end(), [](const Pattern& a, const Pattern& b) {
    return a.text.size() > b.text.size();
  });
}

std::string StopMatcher::Push(std::string_view text) {
  if (stopped()) return "";
  std::string seen = std::move(held_);
  held_.clear();
  for (char c : text) {
    seen.push_back(c);
    for (size_t i = 0; i < patterns_.size(); ++i) {
      Pattern& p = patterns_[i];
      while (p.state > 0 && p.text[p.state] != c) p.state = p.fallback[p.state - 1];
      if (p.text[p.state] == c) ++p.state;
      if (p.state < p.text.size()) continue;
      matched_ = static_cast<int>(i);
      if (!include_stop_) seen.erase(seen.size() - p.text.size());
      return seen;
    }
  }
  uint32_t held = 0;
  for (const Pattern& p : patterns_) held = std::max(held, p.state);
  held_ = seen.substr(seen.size() - held);
  seen.erase(seen.size() - held);
  return seen;
}

std::string StopMatcher::Flush() {
  if (stopped()) return "";
  for (Pattern& p : patterns_) p.state = 0;
  std::string rest = std::move(held_);
  held_.clear();
  return rest;
}

std::string_view StopMatcher::matched() const {
  return matched_ < 0 ? std::string_view() : std::string_view(patterns_[matched_].text);
}

}  // namespace switchyard::gateway
