#include "services/tokenizer/byte_alphabet.h"

#include <array>

#include "services/base/utf8.h"

namespace switchyard {
namespace {

constexpr bool IsPrintable(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr int kAlphabetEnd = 0x144;  // the 68 unprintable bytes take U+0100 to U+0143

struct Alphabet {
  std::array<uint16_t, 256> char_of{};
  std::array<int16_t, kAlphabetEnd> byte_of{};
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (auto& byte : alphabet.byte_of) byte = -1;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const int spelt = IsPrintable(byte) ? byte : next++;
    alphabet.char_of[byte] = static_cast<uint16_t>(spelt);
    alphabet.byte_of[spelt] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

char32_t CharOfByte(uint8_t byte) { return kAlphabet.char_of[byte]; }

std::optional<std::string> BytesOfSpelling(std::string_view spelling) {
  std::string bytes;
  bytes.reserve(spelling.size());
  while (!spelling.empty()) {
    const Utf8Char c = FirstUtf8(spelling);
    if (!c.valid || c.code >= kAlphabetEnd || kAlphabet.byte_of[c.code] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kAlphabet.byte_of[c.code]));
    spelling.remove_prefix(c.size);
  }
  return bytes;
}

}  // namespace switchyard
