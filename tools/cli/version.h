// What `switchyard version` prints: this build, and the machine it runs on.
#pragma once

#include <string>

namespace switchyard::cli {

std::string CpuModel();     // of /proc/cpuinfo
std::string VersionText();  // several lines, for `switchyard version`

}  // namespace switchyard::cli
