// How much memory a model takes: weights by dtype, KV a token, parameters. Pure arithmetic over the
// spec; for `inspect`, for the default of --kv-memory and for refusing what cannot fit.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "services/model/spec.h"
#include "services/tensor/dtype.h"

namespace switchyard {

// How a checkpoint stores a tensor: the dtype, and the bytes of scales that lie in other tensors.
struct StoredTensor {
  StoredTensor(DType stored_dtype, uint64_t bytes_of_scales = 0)
      : dtype(stored_dtype), scale_bytes(bytes_of_scales) {}
  DType dtype;
  uint64_t scale_bytes;
};
// Null: every tensor has the spec's weight_dtype.
using StoredTensorOf = std::function<StoredTensor(std::string_view name)>;

struct WeightBytes {
  std::map<DType, uint64_t> by_dtype;
  uint64_t total() const;
};

// What a router holds: everything but the routed experts.
WeightBytes BackboneBytes(const ModelSpec& spec, const StoredTensorOf& stored);
// Experts of a set (ids in [0, experts.count)) in all MoE layers: what a worker holds.
WeightBytes ExpertBytes(const ModelSpec& spec, std::span<const int> experts,
                        const StoredTensorOf& stored);
// Of one expert, by layer; 0 for layers without experts. All experts of a layer are alike.
std::vector<int64_t> ExpertBytesByLayer(const ModelSpec& spec, const StoredTensorOf& stored);

struct ParameterCount {
  uint64_t total = 0;
  uint64_t active =
      0;  // that a token meets: all but the routed experts, and top_k of those a layer
};
ParameterCount CountParameters(const ModelSpec& spec);

// What one layer keeps of a token: MLA the vector [latent | rotated key], GQA a key of each KV
// head, then a value of each; laid out as services/tensor/kv_vector.h says.
int64_t KvRecordBytes(const ModelSpec& spec, DType kv_dtype);
// KV cache of one token in all layers, and in those that keep it: that have no window, so that
// later tokens never cease to see it. As blocks are laid out (kv_layout.h).
uint64_t KvBytesPerToken(const ModelSpec& spec, DType kv_dtype);
uint64_t KvBytesPerKeptToken(const ModelSpec& spec, DType kv_dtype);

// RESOURCE_EXHAUSTED with both numbers and the mend unless weights and KV fit in what is available.
absl::Status CheckFits(uint64_t weight_bytes, uint64_t kv_bytes, uint64_t available_bytes);

}  // namespace switchyard
