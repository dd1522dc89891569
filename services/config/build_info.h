// What this build is: constants of the process.
#pragma once

#include <string>

namespace switchyard::config {

std::string Version();   // "0.1.0"
std::string Commit();    // short hash, or "unknown" outside a git checkout
std::string Compiler();  // "GNU 12.2.0 Release"

}  // namespace switchyard::config
