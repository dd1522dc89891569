#include "services/base/memory.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>

#include "services/base/control_group.h"

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
  const auto take = [&](const Files& files) {
    if (const auto left = LeftInGroup(files)) least = std::min(least, *left);
  };
  const ControlGroups groups = FindControlGroups("memory", root);
  for (const std::string& group : groups.v2) {
    take({group + "/memory.max", group + "/memory.current", group + "/memory.stat",
          "inactive_file"});
  }
  for (const std::string& group : groups.v1) {
    take({group + "/memory.limit_in_bytes", group + "/memory.usage_in_bytes",
          group + "/memory.stat", "total_inactive_file"});
  }
  return least;
}

}  // namespace switchyard
