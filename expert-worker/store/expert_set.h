// Which experts a worker holds, as its --experts flag says it. The same for every MoE layer.
#pragma once

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard::worker {

// "0-63,70": ids and ranges, in any order. "i/n": part i of n, from 0, of nearly equal size, cut
// between gate groups where there are at least n of them. Empty: all; "none". INVALID_ARGUMENT says
// what is wrong. [experts] of the result: held or not.
absl::StatusOr<std::vector<bool>> ParseExpertSet(std::string_view text, int experts,
                                                 int experts_per_group);

}  // namespace switchyard::worker
