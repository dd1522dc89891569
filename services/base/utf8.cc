#include "services/base/utf8.h"

#include <cstdint>
#include <cstring>

namespace switchyard {
namespace {

// The legal range of the second byte, which rules out overlong forms, surrogates and > U+10FFFF.
struct SecondByte {
  uint8_t low;
  uint8_t high;
};

SecondByte SecondByteOf(uint8_t lead) {
  switch (lead) {
    case 0xE0:
      return {0xA0, 0xBF};
    case 0xED:
      return {0x80, 0x9F};
    case 0xF0:
      return {0x90, 0xBF};
    case 0xF4:
      return {0x80, 0x8F};
    default:
      return {0x80, 0xBF};
  }
}

size_t LengthOf(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (lead >= 0xE0 && lead <= 0xEF) return 3;
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  return 0;
}

}  // namespace

Utf8Char FirstUtf8(std::string_view text) {
  const uint8_t lead = static_cast<uint8_t>(text[0]);
  if (lead < 0x80) return {lead, 1, true, false};
  const size_t length = LengthOf(lead);
  if (length == 0) return {0xFFFD, 1, false, false};
  char32_t code = lead & (0xFF >> (length + 1));
  const SecondByte second = SecondByteOf(lead);
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {0xFFFD, i, false, true};
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    const bool legal = i == 1 ? byte >= second.low && byte <= second.high : (byte & 0xC0) == 0x80;
    if (!legal) return {0xFFFD, i, false, false};
    code = (code << 6) | (byte & 0x3F);
  }
  return {code, length, true, false};
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    uint64_t block;
    if (text.size() >= sizeof(block)) {
      std::memcpy(&block, text.data(), sizeof(block));
      if ((block & 0x8080808080808080u) == 0) {
        text.remove_prefix(sizeof(block));
        continue;
      }
    }
    const Utf8Char c = FirstUtf8(text);
    if (!c.valid) return false;
    text.remove_prefix(c.size);
  }
  return true;
}

void AppendUtf8(char32_t code, std::string* out) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (code >> 6)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else if (code < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (code >> 12)));
    out->push_back(static_cast<char>(0x80 | ((code >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | (code >> 18)));
    out->push_back(static_cast<char>(0x80 | ((code >> 12) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | ((code >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3F)));
  }
}

void AppendLossy(std::string_view text, std::string* out) {
  size_t good = 0;  // bytes in front that are fine and not copied yet
  while (good < text.size()) {
    const Utf8Char c = FirstUtf8(text.substr(good));
    if (c.valid) {
      good += c.size;
      continue;
    }
    out->append(text.substr(0, good));
    out->append(kReplacementCharacter);
    text.remove_prefix(good + c.size);
    good = 0;
  }
  out->append(text);
}

size_t IncompleteSuffix(std::string_view text) {
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const uint8_t byte = static_cast<uint8_t>(text[text.size() - back]);
    if (byte < 0x80) return 0;
    if ((byte & 0xC0) == 0xC0) {  // the lead byte of the last character
      return FirstUtf8(text.substr(text.size() - back)).incomplete ? back : 0;
    }
  }
  return 0;
}

bool IsUnicodeSpace(char32_t code) {
  return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
         code == 0x202F || code == 0x205F || code == 0x3000;
}

}  // namespace switchyard
