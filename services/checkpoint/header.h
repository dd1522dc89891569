// The header of one .safetensors file: 8 bytes of little-endian length, that many bytes of JSON,
// then the data section. https://github.com/huggingface/safetensors#format
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "services/checkpoint/mapped_file.h"
#include "services/checkpoint/tensor_source.h"

namespace switchyard::checkpoint {

constexpr uint64_t kMaxHeaderBytes = 100 << 20;

struct Header {
  std::vector<TensorInfo> tensors;  // offsets are positions in the file; `file` is 0
  uint64_t data_begin = 0;
};

// Everything that can be wrong with a header is found here: its length, its JSON, duplicate or
// ill-formed entries, shapes that do not fit their byte range, ranges beyond the file, overlaps.
// Bytes that belong to no tensor are harmless and allowed. INVALID_ARGUMENT names file and tensor.
absl::StatusOr<Header> ReadHeader(const MappedFile& file);

// The JSON part, for a data section of data_bytes bytes that begins at data_begin. `path` is what
// errors name.
absl::StatusOr<Header> ParseHeader(std::string_view json, std::string_view path,
                                   uint64_t data_begin, uint64_t data_bytes);

}  // namespace switchyard::checkpoint
