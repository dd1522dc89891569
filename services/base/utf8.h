// UTF-8 by the rules of the Unicode standard (no surrogates, no overlong forms); a bad part is
// replaced as String::from_utf8_lossy does it: one U+FFFD for each maximal prefix of a character.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace switchyard {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

struct Utf8Char {
  char32_t code = 0;
  // Bytes of the character; of a bad part, its length.
  size_t size = 0;
  bool valid = false;
  // A bad part that ends with the text and could be completed.
  bool incomplete = false;
};

// The character at the start of a text that is not empty.
Utf8Char FirstUtf8(std::string_view text);

bool IsValidUtf8(std::string_view text);

void AppendUtf8(char32_t code, std::string* out);

// Appends the text, U+FFFD in place of what is no UTF-8.
void AppendLossy(std::string_view text, std::string* out);

// How many bytes at the end are the beginning of a character that is not complete yet: 0 to 3.
size_t IncompleteSuffix(std::string_view text);

// White_Space of Unicode.
bool IsUnicodeSpace(char32_t code);

}  // namespace switchyard
