// Writes JSON by hand, for what is written per token; nlohmann would build a tree first.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace switchyard::gateway {

// Appends `text` quoted and escaped. Bytes that are not UTF-8 become U+FFFD, so the output always
// is.
void AppendJsonString(std::string_view text, std::string* out);
void AppendJsonInt(int64_t value, std::string* out);
// Shortest form that reads back as the same float; JSON has no infinity: -9999 stands for it, as
// OpenAI writes it, and for NaN.
void AppendJsonFloat(float value, std::string* out);

}  // namespace switchyard::gateway
