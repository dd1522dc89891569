// What this binary is: version, commit, compiler, and the machine it runs on.
#pragma once

#include <string>

namespace switchyard::cli {

extern const char* const kVersion;  // "0.1.0"
extern const char* const kCommit;   // short hash, or "unknown" outside a git checkout
std::string CpuModel();             // of /proc/cpuinfo
std::string VersionText();          // several lines, for `switchyard version`

}  // namespace switchyard::cli
