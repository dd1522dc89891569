// What a checkpoint's bytes were when somebody vouched for them: checksums of its tensors, in a
// file of JSON beside it. They find what a disk, a copy or a cable damaged, not what somebody meant
// to change.
//
// A matrix or vector has one checksum. A stack of them (3 dimensions and more, or biases with 2)
// has one for each, as one expert's are loaded without the others'.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "services/checkpoint/progress.h"
#include "services/checkpoint/tensor_source.h"

namespace switchyard::checkpoint {

class Checksums {
 public:
  // DIR/checksums.json, or PATH.checksums.json of a .gguf file.
  static std::string PathFor(const std::string& checkpoint);
  // Reads all of a checkpoint as it lies there, whatever its config says. CANCELLED where
  // `progress` wants no more; it may be null.
  static absl::StatusOr<Checksums> Of(const TensorSource& source, const ProgressFn& progress);
  // None where there is no such file. INVALID_ARGUMENT names the file and what is wrong with it.
  static absl::StatusOr<Checksums> Read(const std::string& path);

  std::string Json() const;
  bool empty() const { return of_.empty(); }
  const std::string& path() const { return path_; }

  // Whether rows [first, first + count) of the tensor, which `data` holds, are what they were: true
  // where nothing is known of them, or only of more than these.
  bool Matches(const TensorInfo& tensor, int64_t first, int64_t count, const std::byte* data) const;
  // Where `now` has another checksum, or none, of a tensor that this one has: their names, sorted.
  std::vector<std::string> Differences(const Checksums& now) const;

 private:
  std::string path_;  // errors name it
  std::unordered_map<std::string, std::vector<uint64_t>> of_;
};

}  // namespace switchyard::checkpoint
