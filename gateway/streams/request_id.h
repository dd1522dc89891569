// The name of a request in logs, errors and answers: the client's own or one made here.
#pragma once

#include <string>
#include <string_view>

namespace switchyard::gateway {

// 1 to 128 of letters, digits and "-_.:": safe in a header, a log line and JSON.
bool IsRequestId(std::string_view id);
std::string MakeRequestId();  // 32 hex digits, random

}  // namespace switchyard::gateway
