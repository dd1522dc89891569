// Added tokens ("<think>", "<|im_start|>"): cut out of the text before anything else looks at it,
// the leftmost first and of those the longest. Tokens with normalized=false are looked for in the
// raw text, the others in the normalised one. Immutable after the last Add.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace switchyard {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool normalized = false;
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and behind it
  bool single_word = false;  // only where no word character touches it
};

// A stretch of text without added tokens (id < 0), or one added token (without text).
struct Segment {
  std::string_view text;
  int32_t id = -1;
};

class AddedTokenMatcher {
 public:
  AddedTokenMatcher();

  // Looks for `pattern` (the token's content, normalised where the token is). The first token of
  // equal patterns counts; empty patterns are ignored.
  void Add(const AddedToken& token, std::string_view pattern);

  bool empty() const { return tokens_.empty(); }

  // Cuts the text; the segments point into it.
  std::vector<Segment> Split(std::string_view text) const;

 private:
  struct Node {
    int32_t token = -1;  // index into tokens_
  };
  struct Found {
    int32_t token = -1;
    size_t size = 0;
  };
  Found LongestAt(std::string_view text) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  absl::flat_hash_map<uint64_t, uint32_t> edges_;  // (node << 8 | byte) → node
  std::array<bool, 256> first_{};                  // bytes that some pattern begins with
};

}  // namespace switchyard
