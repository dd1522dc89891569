// How the decoder of tokenizer.json turns tokens back into text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace switchyard {

struct DecoderSpec {
  // Tokens spell bytes in the byte-level alphabet. The rest of the fields is for the others.
  bool byte_level = false;
  // In each token: text → text, one after another.
  std::vector<std::pair<std::string, std::string>> replacements;
  // "<0xHH>" is a byte; a run of them that is no UTF-8 becomes one U+FFFD a byte.
  bool byte_fallback = false;
  // The first token loses these ("▁") instead of having them replaced; empty: none.
  std::string dropped_in_first;
  // Up to strip_left_count times this text is taken off the beginning of the whole.
  std::string strip_left;
  int strip_left_count = 0;
};

}  // namespace switchyard
