#include "services/base/control_group.h"

#include <algorithm>
#include <fstream>

#include "absl/strings/str_split.h"

namespace switchyard {

ControlGroups FindControlGroups(std::string_view controller, const std::string& root) {
  const std::string v1 = root + "/sys/fs/cgroup/" + std::string(controller);
  const std::string v2 = root + "/sys/fs/cgroup";
  ControlGroups groups = {.v1 = {v1}, .v2 = {v2}};
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // "id:controllers:path"
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3 || parts[2] == "/") continue;
    if (parts[1].empty()) groups.v2.push_back(v2 + parts[2]);
    const std::vector<std::string> names = absl::StrSplit(parts[1], ',');
    if (std::ranges::count(names, controller) > 0) groups.v1.push_back(v1 + parts[2]);
  }
  return groups;
}

}  // namespace switchyard
