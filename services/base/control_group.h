// Where the limits of this process's control groups stand.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

// The folders of the groups, most general first: of version 2, or of version 1's `controller`. The
// top one stands always among them; inside of a container it is ours. `root` as in memory.h.
struct ControlGroups {
  std::vector<std::string> v1, v2;
};
ControlGroups FindControlGroups(std::string_view controller, const std::string& root);

}  // namespace switchyard
