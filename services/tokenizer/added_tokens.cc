#include "services/tokenizer/added_tokens.h"

#include <unicode/uchar.h>

#include <algorithm>

#include "services/base/utf8.h"

namespace switchyard {
namespace {

bool IsWordChar(char32_t code) {
  const auto c = static_cast<UChar32>(code);
  constexpr uint32_t kMask = U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK;
  return u_isUAlphabetic(c) || (U_GET_GC_MASK(c) & kMask) != 0 ||
         u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL);
}

// The last character of a valid text that is not empty.
Utf8Char LastUtf8(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return FirstUtf8(text.substr(at));
}

bool TouchesWord(std::string_view before, std::string_view behind) {
  return (!before.empty() && IsWordChar(LastUtf8(before).code)) ||
         (!behind.empty() && IsWordChar(FirstUtf8(behind).code));
}

size_t SpacesAtEnd(std::string_view text) {
  size_t size = text.size();
  while (size > 0) {
    const Utf8Char c = LastUtf8(text.substr(0, size));
    if (!IsUnicodeSpace(c.code)) break;
    size -= c.size;
  }
  return text.size() - size;
}

size_t SpacesAtStart(std::string_view text) {
  size_t size = 0;
  while (size < text.size()) {
    const Utf8Char c = FirstUtf8(text.substr(size));
    if (!IsUnicodeSpace(c.code)) break;
    size += c.size;
  }
  return size;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher() : nodes_(1) {}

void AddedTokenMatcher::Add(const AddedToken& token, std::string_view pattern) {
  if (pattern.empty()) return;
  first_[static_cast<uint8_t>(pattern[0])] = true;
  uint32_t node = 0;
  for (char c : pattern) {
    const uint64_t key = (static_cast<uint64_t>(node) << 8) | static_cast<uint8_t>(c);
    const auto [edge, fresh] = edges_.try_emplace(key, static_cast<uint32_t>(nodes_.size()));
    node = edge->second;
    if (fresh) nodes_.emplace_back();
  }
  if (nodes_[node].token >= 0) return;
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

AddedTokenMatcher::Found AddedTokenMatcher::LongestAt(std::string_view text) const {
  Found found;
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto edge =
        edges_.find((static_cast<uint64_t>(node) << 8) | static_cast<uint8_t>(text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (nodes_[node].token >= 0) found = {nodes_[node].token, i + 1};
  }
  return found;
}

std::vector<Segment> AddedTokenMatcher::Split(std::string_view text) const {
  std::vector<Segment> segments;
  size_t done = 0;  // everything before is in segments
  for (size_t at = 0; at < text.size();) {
    if (!first_[static_cast<uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    const Found found = LongestAt(text.substr(at));
    if (found.token < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[found.token];
    size_t begin = at;
    size_t end = at + found.size;
    at = end;
    if (token.single_word && TouchesWord(text.substr(0, begin), text.substr(end))) continue;
    if (token.lstrip) begin = std::max(begin - SpacesAtEnd(text.substr(0, begin)), done);
    if (token.rstrip) end += SpacesAtStart(text.substr(end));
    if (done < begin) segments.push_back({text.substr(done, begin - done), -1});
    segments.push_back({{}, token.id});
    // The token before may have reached over this one with rstrip: this one still counts.
    done = std::max(done, end);
  }
  if (done < text.size()) segments.push_back({text.substr(done), -1});
  return segments;
}

}  // namespace switchyard
