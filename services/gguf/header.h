// The header of a GGUF file: typed metadata, then a list of tensors, then their bytes. What the
// file says and nothing more: services/model reads a ModelSpec from it, services/tokenizer a
// tokenizer, services/checkpoint the weights. Versions 2 and 3, little-endian.
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <cstdint>
#include <istream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

namespace switchyard::gguf {

// A tensor as the header lists it.
struct Tensor {
  std::string name;
  std::vector<uint64_t> dims;  // 1 to 4 sizes, the fastest first; their product is below 2^59
  uint32_t type = 0;           // ggml's number of the element type
  uint64_t offset = 0;         // of its first byte in the file, which lies inside the file
};

struct Header {
  std::string path;
  // An object: key → number, boolean, string or a list of one kind of those. Texts are UTF-8. A
  // float32 is the double that its shortest decimal form names, so 1e-6 reads as 1e-6.
  nlohmann::json metadata;
  std::vector<Tensor> tensors;  // names are distinct
  uint64_t metadata_bytes = 0;  // the file's first bytes, up to the end of the metadata
  uint64_t file_bytes = 0;
};

// Whether a path names a GGUF file (by its ending) rather than a model's directory.
bool IsGguf(const std::string& path);

// Of a key whose value is a list: whether it is wanted. Those of tokenizers have a million
// elements, which are passed over without a look at what they say, and then are not in the
// metadata.
using WantsList = absl::FunctionRef<bool(std::string_view key)>;
inline bool EveryList(std::string_view) { return true; }
inline bool NoList(std::string_view) { return false; }

// Reads no more than the header. NOT_FOUND; UNIMPLEMENTED for another version or byte order;
// INVALID_ARGUMENT names the file and what is broken: lengths and counts beyond the file or our
// bounds, unknown value types, keys or tensors listed twice, text that is no UTF-8, shapes that
// overflow, offsets that are unaligned or beyond the file.
absl::StatusOr<Header> ReadHeader(const std::string& path, WantsList wants = EveryList);

// The same from a stream that stands at the first of file_bytes bytes; `path` is what errors name.
absl::StatusOr<Header> ParseHeader(std::istream& in, uint64_t file_bytes, const std::string& path,
                                   WantsList wants = EveryList);

}  // namespace switchyard::gguf
