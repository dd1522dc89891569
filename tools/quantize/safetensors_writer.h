// Writes a checkpoint's tensors in the order in which they were announced, cut into files:
// model.safetensors, or model-00001-of-0000N.safetensors with their index. Holds nothing of them.
// In a file wider elements come first, so that all are aligned and nothing lies between them.
// https://github.com/huggingface/safetensors#format
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/base/unique_fd.h"
#include "tools/quantize/matrix_codec.h"

namespace switchyard::quantize {

class SafetensorsWriter {
 public:
  // `directory` exists. A file takes at most `file_bytes` of tensors, but for one that is larger.
  SafetensorsWriter(std::string directory, std::vector<StoredTensor> tensors, uint64_t file_bytes);

  // The next tensor, whole. Errors of the file system name the file and how much is missing.
  absl::Status Write(std::span<const std::byte> data);
  // After the last one.
  absl::Status Finish();

  int files() const { return static_cast<int>(first_of_file_.size()); }

 private:
  std::string NameOf(size_t file) const;
  absl::Status Open(size_t file);
  absl::Status Close();
  absl::Status Put(std::span<const std::byte> data);
  absl::Status WriteIndex() const;

  const std::string directory_;
  const std::vector<StoredTensor> tensors_;
  std::vector<size_t> first_of_file_;
  size_t next_ = 0, file_ = 0;     // tensor, file that is open once next_ > 0
  std::vector<uint64_t> offsets_;  // in that file, of its tensors
  UniqueFd out_;
};

}  // namespace switchyard::quantize
