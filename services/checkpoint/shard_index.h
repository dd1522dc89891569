// model.safetensors.index.json: which shard of a checkpoint holds which tensor.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard::checkpoint {

struct ShardIndex {
  std::vector<std::string> shards;                // file names, sorted
  std::unordered_map<std::string, int> shard_of;  // tensor name → index into shards
};

// `path` is what errors name. A shard must be a plain file name (no directory, no ".."), a tensor
// is listed once; INVALID_ARGUMENT otherwise.
absl::StatusOr<ShardIndex> ParseShardIndex(std::string_view json, std::string_view path);

}  // namespace switchyard::checkpoint
