#include "tools/cli/version.h"

#include <fmt/format.h>

#include <fstream>

#include "services/config/build_info.h"
#include "services/kernels/kernels.h"

namespace switchyard::cli {

std::string CpuModel() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("model name", 0) == 0) {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  }
  return "unknown";
}

std::string VersionText() {
  std::string isas;
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    isas += isas.empty() ? "" : " ";
    isas += kernels::Name(isa);
  }
  return fmt::format("switchyard {} ({})\ncompiler  {}\ncpu       {}\nkernels   {}\n",
                     config::Version(), config::Commit(), config::Compiler(), CpuModel(), isas);
}

}  // namespace switchyard::cli
