// How many cores this process may keep busy.
#pragma once

#include <string>

namespace switchyard {

// The less of the cores that it may run on and of the processor time that its control group grants,
// rounded up; at least 1. What `threads` of 0 means. `root` stands before /proc and /sys, for
// tests.
int UsableCores(const std::string& root = "");

}  // namespace switchyard
