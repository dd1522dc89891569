#include "services/checkpoint/shard_index.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "services/base/json_error.h"
#include "services/base/status.h"

namespace switchyard::checkpoint {
namespace {

using nlohmann::json;

constexpr size_t kMaxShards = 4096;
constexpr int kWeightMapDepth = 2;  // of the keys inside "weight_map", as the parser counts

bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && name.find('\\') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

// Parses into a tree and tells in `twice` a key that weight_map holds more than once. Nothing but
// "weight_map" is kept of the file.
json ParseTree(std::string_view text, std::string& twice) {
  std::unordered_map<std::string, bool> seen;
  bool in_weight_map = false;
  const auto filter = [&](int depth, json::parse_event_t event, json& value) {
    if (event != json::parse_event_t::key) return true;
    const auto& name = value.get_ref<const std::string&>();
    if (depth == kWeightMapDepth - 1) return in_weight_map = name == "weight_map";
    if (in_weight_map && depth == kWeightMapDepth && !seen.emplace(name, true).second) twice = name;
    return true;
  };
  return json::parse(text.begin(), text.end(), filter);
}

}  // namespace

absl::StatusOr<ShardIndex> ParseShardIndex(std::string_view text, std::string_view path) {
  json tree;
  std::string twice;
  try {
    tree = ParseTree(text, twice);
  } catch (const json::exception& error) {
    return InvalidArgument("{}: {}", path, NotValidJson(error.what()));
  }
  if (!tree.is_object() || !tree.contains("weight_map") || !tree["weight_map"].is_object()) {
    return InvalidArgument("{}: has no object \"weight_map\"", path);
  }
  if (!twice.empty()) return InvalidArgument("{}: tensor \"{}\" is listed twice", path, twice);
  std::map<std::string, int> shards;
  for (const auto& [tensor, shard] : tree["weight_map"].items()) {
    if (!shard.is_string() || !IsPlainFileName(shard.get_ref<const std::string&>())) {
      return InvalidArgument(
          "{}: tensor \"{}\" lies in {}, expected a plain file name", path, tensor,
          shard.is_string()
              ? shard.dump(-1, ' ', true, json::error_handler_t::replace).substr(0, 120)
              : shard.type_name());
    }
    shards.emplace(shard.get<std::string>(), 0);
  }
  if (shards.empty() || shards.size() > kMaxShards) {
    return InvalidArgument("{}: names {} shards, expected 1 to {}", path, shards.size(),
                           kMaxShards);
  }
  ShardIndex index;
  for (auto& [name, number] : shards) {
    number = static_cast<int>(index.shards.size());
    index.shards.push_back(name);
  }
  for (const auto& [tensor, shard] : tree["weight_map"].items()) {
    index.shard_of.emplace(tensor, shards[shard.get<std::string>()]);
  }
  return index;
}

}  // namespace switchyard::checkpoint
