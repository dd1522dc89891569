// What the JSON library says of a text that it cannot read, in the words of our messages.
#pragma once

#include <string>
#include <string_view>

namespace switchyard {

// Of an exception's what(): "not valid JSON at line 2, column 1: syntax error …".
std::string NotValidJson(std::string_view what);

}  // namespace switchyard
