#include "gateway/api/json_text.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>

namespace switchyard::gateway {
namespace {

// Bytes of the valid UTF-8 character at `at`, 0 if there is none.
size_t CharacterLength(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(at);
  size_t length = 0;
  unsigned char low = 0x80, high = 0xBF;  // of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;   // shorter forms exist
    if (lead == 0xED) high = 0x9F;  // surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;  // beyond U+10FFFF
  }
  if (length == 0 || at + length > text.size()) return 0;
  if (byte(at + 1) < low || byte(at + 1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if (byte(at + i) < 0x80 || byte(at + i) > 0xBF) return 0;
  }
  return length;
}

void AppendEscape(char c, std::string* out) {
  switch (c) {
    case '"':
      *out += "\\\"";
      return;
    case '\\':
      *out += "\\\\";
      return;
    case '\n':
      *out += "\\n";
      return;
    case '\r':
      *out += "\\r";
      return;
    case '\t':
      *out += "\\t";
      return;
    default:
      fmt::format_to(std::back_inserter(*out), "\\u{:04x}", static_cast<unsigned char>(c));
  }
}

}  // namespace

void AppendJsonString(std::string_view text, std::string* out) {
  out->push_back('"');
  size_t plain = 0;  // start of what can be copied as it is
  size_t at = 0;
  while (at < text.size()) {
    const unsigned char c = static_cast<unsigned char>(text[at]);
    if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\' && c != 0x7F) {
      ++at;
      continue;
    }
    if (c >= 0x80) {
      if (const size_t length = CharacterLength(text, at); length > 0) {
        at += length;
        continue;
      }
    }
    out->append(text, plain, at - plain);
    if (c >= 0x80) {
      *out += "\xEF\xBF\xBD";
    } else {
      AppendEscape(text[at], out);
    }
    plain = ++at;
  }
  out->append(text, plain, text.size() - plain);
  out->push_back('"');
}

void AppendJsonInt(int64_t value, std::string* out) {
  std::array<char, 24> text;
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
  out->append(text.data(), static_cast<size_t>(end - text.data()));
}

void AppendJsonFloat(float value, std::string* out) {
  if (!std::isfinite(value)) {
    *out += "-9999.0";
    return;
  }
  std::array<char, 40> text;
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
  out->append(text.data(), static_cast<size_t>(end - text.data()));
}

}  // namespace switchyard::gateway
