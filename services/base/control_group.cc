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
    const std::vector<std::string> names = absl::StrSplit(parts[1], ',');
    // Every group above ours limits us too.
    for (size_t end = parts[2].find('/', 1);; end = parts[2].find('/', end + 1)) {
      const std::string path = parts[2].substr(0, end);
      if (parts[1].empty()) groups.v2.push_back(v2 + path);
      if (std::ranges::count(names, controller) > 0) groups.v1.push_back(v1 + path);
      if (end == std::string::npos) break;
    }
  }
  return groups;
}

}  // namespace switchyard
