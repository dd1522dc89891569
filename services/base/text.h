// The one bridge between std::string_view and Debian's absl::string_view, which is a type of its
// own and converts neither way. Everything of ours speaks std.
#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace switchyard {

inline std::string_view ToStd(absl::string_view s) { return {s.data(), s.size()}; }
inline absl::string_view ToAbsl(std::string_view s) { return {s.data(), s.size()}; }

}  // namespace switchyard
