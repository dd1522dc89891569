// How much memory this process may still take.
#pragma once

#include <cstdint>
#include <string>

namespace switchyard {

// The less of what the machine has available and of what the control group allows. Page cache
// counts as available, hence also the mapped files that this process has read. 0 if it cannot be
// found out. `root` stands before /proc and /sys, for tests.
uint64_t AvailableMemoryBytes(const std::string& root = "");

}  // namespace switchyard
