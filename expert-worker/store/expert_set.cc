#include "expert-worker/store/expert_set.h"

#include <charconv>
#include <cstdint>
#include <optional>

#include "services/base/status.h"

namespace switchyard::worker {
namespace {

std::optional<int> Number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

std::string_view Strip(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

absl::StatusOr<std::vector<bool>> PartOf(std::string_view text, size_t slash, int experts,
                                         int experts_per_group) {
  const auto i = Number(Strip(text.substr(0, slash)));
  const auto n = Number(Strip(text.substr(slash + 1)));
  if (!i || !n || *n < 1 || *i >= *n) {
    return InvalidArgument("experts \"{}\": in i/n, i runs from 0 to n - 1", text);
  }
  if (*n > experts) {
    return InvalidArgument("experts \"{}\": the model has {} experts a layer", text, experts);
  }
  const int unit = experts / experts_per_group >= *n ? experts_per_group : 1;
  const int64_t units = experts / unit;
  std::vector<bool> held(experts, false);
  const int64_t first = units * *i / *n * unit, end = units * (*i + 1) / *n * unit;
  for (int64_t e = first; e < end; ++e) held[e] = true;
  return held;
}

}  // namespace

absl::StatusOr<std::vector<bool>> ParseExpertSet(std::string_view text, int experts,
                                                 int experts_per_group) {
  text = Strip(text);
  if (text.empty()) return std::vector<bool>(experts, true);
  if (const size_t slash = text.find('/'); slash != std::string_view::npos) {
    return PartOf(text, slash, experts, experts_per_group);
  }
  std::vector<bool> held(experts, false);
  for (std::string_view rest = text; !rest.empty();) {
    const size_t comma = rest.find(',');
    const std::string_view item = Strip(rest.substr(0, comma));
    rest = comma == std::string_view::npos ? "" : rest.substr(comma + 1);
    const size_t dash = item.find('-');
    const auto first = Number(Strip(item.substr(0, dash)));
    const auto last = dash == std::string_view::npos ? first : Number(Strip(item.substr(dash + 1)));
    if (!first || !last || *first > *last) {
      return InvalidArgument("experts \"{}\": \"{}\" is no id, range (0-63) or part (0/3)", text,
                             item);
    }
    if (*last >= experts) {
      return InvalidArgument("experts \"{}\": {} is beyond the model's last expert, {}", text,
                             *last, experts - 1);
    }
    for (int e = *first; e <= *last; ++e) held[e] = true;
  }
  return held;
}

}  // namespace switchyard::worker
