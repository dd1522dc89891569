#include "services/base/memory.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <vector>

namespace switchyard {
namespace {

// The number behind `key` in lines of "key: number" or "key number"; with an empty key the first.
std::optional<uint64_t> NumberIn(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string word;
    uint64_t value = 0;
    if (!key.empty() && (!(words >> word) || word != key)) continue;
    if (words >> value) return value;
    if (key.empty()) return std::nullopt;
  }
  return std::nullopt;
}

struct Files {
  std::string limit, usage, stat, reclaimable;
};

// What a group may still take: its limit less what it uses and cannot give back.
std::optional<uint64_t> LeftInGroup(const Files& files) {
  const auto limit = NumberIn(files.limit, "");  // "max" is no number
  const auto usage = NumberIn(files.usage, "");
  if (!limit || !usage) return std::nullopt;
  const uint64_t used =
      *usage - std::min(*usage, NumberIn(files.stat, files.reclaimable).value_or(0));
  return *limit - std::min(*limit, used);
}

}  // namespace

uint64_t AvailableMemoryBytes(const std::string& root) {
  const auto machine = NumberIn(root + "/proc/meminfo", "MemAvailable:");
  if (!machine) return 0;
  uint64_t least = *machine * 1024;
  // The group's own folder, as /proc names it, and the top one, which is ours inside of a
  // container.
  std::vector<std::string> v1 = {""}, v2 = {""};
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t colon = line.find(':'), second = line.find(':', colon + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(colon + 1, second - colon - 1);
    if (controllers.empty()) v2.push_back(line.substr(second + 1));
    if (controllers == "memory") v1.push_back(line.substr(second + 1));
  }
  const auto take = [&](const Files& files) {
    if (const auto left = LeftInGroup(files)) least = std::min(least, *left);
  };
  for (const std::string& path : v2) {
    const std::string base = root + "/sys/fs/cgroup" + path;
    take({base + "/memory.max", base + "/memory.current", base + "/memory.stat", "inactive_file"});
  }
  for (const std::string& path : v1) {
    const std::string base = root + "/sys/fs/cgroup/memory" + path;
    take({base + "/memory.limit_in_bytes", base + "/memory.usage_in_bytes", base + "/memory.stat",
          "total_inactive_file"});
  }
  return least;
}

}  // namespace switchyard
