// The byte-level alphabet of GPT-2: every byte is spelt by one printable character, so that a
// vocabulary of bytes can be written as JSON text (space is "Ġ", line feed "Ċ").
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace switchyard {

// The character that spells a byte.
char32_t CharOfByte(uint8_t byte);

// The bytes that a token spells, nothing if a character of it is not of the alphabet.
std::optional<std::string> BytesOfSpelling(std::string_view spelling);

}  // namespace switchyard
