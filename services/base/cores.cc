#include "services/base/cores.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>

#include "services/base/control_group.h"

namespace switchyard {

int UsableCores(const std::string& root) {
  double least = std::max(1u, std::thread::hardware_concurrency());
  const auto take = [&least](double quota, double period) {
    if (quota > 0 && period > 0) least = std::min(least, std::ceil(quota / period));
  };
  const ControlGroups groups = FindControlGroups("cpu", root);
  for (const std::string& group : groups.v2) {
    std::ifstream file(group + "/cpu.max");  // "max 100000" where there is no limit
    double quota = 0, period = 0;
    if (file >> quota >> period) take(quota, period);
  }
  for (const std::string& group : groups.v1) {
    std::ifstream quota_file(group + "/cpu.cfs_quota_us"),
        period_file(group + "/cpu.cfs_period_us");
    double quota = 0, period = 0;
    if (quota_file >> quota && period_file >> period) take(quota, period);
  }
  return std::max(1, static_cast<int>(least));
}

}  // namespace switchyard
