// Serves the tensors of a checkpoint by name, out of mapped files. Knows nothing of models.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "services/quantization/config.h"
#include "services/tensor/dtype.h"
#include "services/tensor/view.h"

namespace switchyard::checkpoint {

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
  int file = 0;         // index into TensorSource::files()
  uint64_t offset = 0;  // in that file
  // The file's own name of a dtype that we do not know ("F8_E8M0", …), where dtype means nothing.
  // Such a tensor is listed and cannot be mapped.
  std::string unknown_dtype;
  // Of quantised weights whose scales lie in other tensors: how (group sizes, packing), as text,
  // and the bytes of those. `bytes` and `offset` are of the elements.
  std::string scales;
  uint64_t scale_bytes = 0;
};

// A range of dimension 0 of a tensor, mapped read-only. Valid as long as its source lives.
struct MappedTensor {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // of the range
  // Of quantised weights, as WeightView has them; 0: rows one behind the other.
  Packing packing = Packing::kRows;
  int64_t stride = 0;
  WeightScales scales = {};
};

// The last two dimensions of a tensor, of which the others are 1.
WeightView MatrixOf(const MappedTensor& tensor, WeightLayout layout = WeightLayout::kOutIn);

// A part of a tensor that a process is going to use: rows [first, first + count) of dimension 0;
// count -1 takes all.
struct TensorRange {
  std::string name;
  int64_t first = 0;
  int64_t count = -1;
};

// Thread-safe after Open. All headers are checked on opening: sizes, overlaps, bounds, dtypes.
class TensorSource {
 public:
  virtual ~TensorSource() = default;

  virtual const std::vector<std::string>& files() const = 0;
  virtual const std::vector<TensorInfo>& tensors() const = 0;  // sorted by name
  virtual const TensorInfo* Find(std::string_view name) const = 0;

  // Maps the pages of these ranges and no others (neighbours share one mapping). Call it once with
  // all that the process needs; ranges mapped before are kept. NOT_FOUND names a missing tensor,
  // UNIMPLEMENTED one of an unknown dtype, INVALID_ARGUMENT a range beyond its tensor.
  virtual absl::Status Map(const std::vector<TensorRange>& ranges) = 0;
  // A range inside what was mapped; FAILED_PRECONDITION if it was not.
  virtual absl::StatusOr<MappedTensor> Get(const TensorRange& range) const = 0;
  // Brings what was mapped of a range into memory. DATA_LOSS where the file cannot be read, or not
  // so far any more: touching the range would then end the process.
  virtual absl::Status Populate(const TensorRange& /*range*/) const { return absl::OkStatus(); }
  // Compares it with the checksums that lie beside the checkpoint, where they do (checksums.h),
  // which reads it. DATA_LOSS names file and tensor.
  virtual absl::Status Verify(const TensorRange& /*range*/) const { return absl::OkStatus(); }
  // Its pages may leave memory; they come back as they are used. A page that it shares with others
  // stays.
  virtual void Evict(const TensorRange& /*range*/) const {}
  // Copies bytes of a file without mapping them, e.g. to sample a checkpoint.
  virtual absl::Status Read(int file, uint64_t offset, void* to, size_t bytes) const = 0;
};

// A directory with model.safetensors, or model.safetensors.index.json and its shards. Symbolic
// links (as Hugging Face's cache lays them out) are followed. Errors name file and tensor.
absl::StatusOr<std::unique_ptr<TensorSource>> OpenSafetensors(const std::string& directory);

// A .gguf file, or the first of the files that a model is split over, whose tensors are served
// under the names that the same model's Hugging Face checkpoint gives them: one a routed expert,
// where the file has one for all. Matrices are [out, in]. Of DeepSeek's kv_b_proj newer files hold
// the two halves, which no such checkpoint has; they are "k_b_proj.weight" [heads, kv_lora, nope]
// and "v_b_proj.weight" [heads, v, kv_lora] of self_attn. A tensor that we know no such name of
// keeps its own.
absl::StatusOr<std::unique_ptr<TensorSource>> OpenGguf(const std::string& path);

// The same tensors with quantised matrices under the names and shapes that they would have without
// ("X.weight", [out, in]), and elements of kI8, kI4, kE2M1 or kF8E4M3; X is quantised where it has
// such tensors. What is wrong with a matrix is told by Map and Get of it, by tensor and file.
std::unique_ptr<TensorSource> WithQuantisedMatrices(const QuantizationConfig& config,
                                                    std::unique_ptr<TensorSource> source);

// OpenGguf of a file's path, OpenSafetensors of a directory's, quantised as its config.json (if
// there is one) says.
absl::StatusOr<std::unique_ptr<TensorSource>> OpenCheckpoint(const std::string& path);

}  // namespace switchyard::checkpoint
