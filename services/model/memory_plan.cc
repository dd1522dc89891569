#include "services/model/memory_plan.h"

#include "services/base/status.h"
#include "services/model/kv_layout.h"
#include "services/model/tensor_names.h"
#include "services/tensor/kv_vector.h"

namespace switchyard {
namespace {

uint64_t Elements(const TensorRef& tensor) {
  uint64_t product = 1;
  for (int64_t size : tensor.shape) product *= static_cast<uint64_t>(size);
  return product;
}

uint64_t Elements(const TensorSlice& slice) {
  return Elements(slice.tensor) / static_cast<uint64_t>(slice.tensor.shape[0]) *
         static_cast<uint64_t>(slice.count);
}

// Adds rows [0, rows) of dimension 0 of a tensor.
void AddRows(const ModelSpec& spec, const StoredTensorOf& stored, const TensorRef& tensor,
             int64_t rows, WeightBytes* out) {
  const StoredTensor as = stored ? stored(tensor.name) : StoredTensor(spec.weight_dtype);
  const uint64_t all = static_cast<uint64_t>(tensor.shape[0]), part = static_cast<uint64_t>(rows);
  const int64_t elements = static_cast<int64_t>(Elements(tensor) / all * part);
  out->by_dtype[as.dtype] +=
      static_cast<uint64_t>(BytesOf(as.dtype, elements)) + as.scale_bytes * part / all;
}

// What one group's layers keep of a token.
uint64_t GroupBytes(const ModelSpec& spec, const KvLayout& layout, DType kv_dtype) {
  return static_cast<uint64_t>(KvRecordBytes(spec, kv_dtype) * layout.layers_per_block);
}

void AddExpert(const ModelSpec& spec, const StoredTensorOf& stored, int layer, int expert,
               WeightBytes* out) {
  for (const TensorSlice& slice : AllSlices(ExpertTensorsOf(spec, layer, expert))) {
    AddRows(spec, stored, slice.tensor, slice.count, out);
  }
}

}  // namespace

uint64_t WeightBytes::total() const {
  uint64_t sum = 0;
  for (const auto& [dtype, bytes] : by_dtype) sum += bytes;
  return sum;
}

WeightBytes BackboneBytes(const ModelSpec& spec, const StoredTensorOf& stored) {
  WeightBytes out;
  for (const TensorRef& tensor : AllTensors(BackboneTensorsOf(spec))) {
    AddRows(spec, stored, tensor, tensor.shape[0], &out);
  }
  return out;
}

WeightBytes ExpertBytes(const ModelSpec& spec, std::span<const int> experts,
                        const StoredTensorOf& stored) {
  WeightBytes out;
  for (int layer = 0; layer < spec.num_layers(); ++layer) {
    if (!spec.layers[static_cast<size_t>(layer)].moe) continue;
    for (int expert : experts) AddExpert(spec, stored, layer, expert, &out);
  }
  return out;
}

std::vector<int64_t> ExpertBytesByLayer(const ModelSpec& spec, const StoredTensorOf& stored) {
  std::vector<int64_t> out;
  for (int layer = 0; layer < spec.num_layers(); ++layer) {
    WeightBytes one;
    if (spec.layers[static_cast<size_t>(layer)].moe) AddExpert(spec, stored, layer, 0, &one);
    out.push_back(static_cast<int64_t>(one.total()));
  }
  return out;
}

ParameterCount CountParameters(const ModelSpec& spec) {
  uint64_t backbone = 0;
  for (const TensorRef& tensor : AllTensors(BackboneTensorsOf(spec))) backbone += Elements(tensor);
  ParameterCount out{backbone, backbone};
  for (int layer = 0; layer < spec.num_layers(); ++layer) {
    if (!spec.layers[static_cast<size_t>(layer)].moe) continue;
    uint64_t expert = 0;
    for (const TensorSlice& s : AllSlices(ExpertTensorsOf(spec, layer, 0))) expert += Elements(s);
    out.total += expert * static_cast<uint64_t>(spec.experts.count);
    out.active += expert * static_cast<uint64_t>(spec.gate.top_k);
  }
  return out;
}

int64_t KvRecordBytes(const ModelSpec& spec, DType kv_dtype) {
  const AttentionSpec& a = spec.attention;
  return a.kind == AttentionKind::kMla
             ? KvVectorBytes(kv_dtype, int64_t{a.kv_lora_rank} + a.qk_rope_head_dim)
             : 2 * a.kv_heads * KvVectorBytes(kv_dtype, a.head_dim);
}

uint64_t KvBytesPerToken(const ModelSpec& spec, DType kv_dtype) {
  const KvLayout layout = KvLayoutOf(spec);
  return GroupBytes(spec, layout, kv_dtype) * static_cast<uint64_t>(layout.groups());
}

uint64_t KvBytesPerKeptToken(const ModelSpec& spec, DType kv_dtype) {
  const KvLayout layout = KvLayoutOf(spec);
  return GroupBytes(spec, layout, kv_dtype) * static_cast<uint64_t>(layout.groups_that_see_all());
}

absl::Status CheckFits(uint64_t weight_bytes, uint64_t kv_bytes, uint64_t available_bytes) {
  if (weight_bytes <= available_bytes && kv_bytes <= available_bytes - weight_bytes) {
    return absl::OkStatus();
  }
  const auto gib = [](uint64_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
  const char* mend =
      weight_bytes > available_bytes ? "spread the experts over workers on other machines"
      : weight_bytes < kv_bytes      ? "give less --kv-memory"
                                     : "give less --kv-memory, or spread the experts over workers "
                                       "on other machines";
  return ResourceExhausted(
      "the model needs {:.2f} GiB ({:.2f} GiB of weights and {:.2f} GiB of KV cache), but {:.2f} "
      "GiB are available; {}",
      gib(weight_bytes) + gib(kv_bytes), gib(weight_bytes), gib(kv_bytes), gib(available_bytes),
      mend);
}

}  // namespace switchyard
