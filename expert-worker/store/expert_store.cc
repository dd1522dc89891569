#include "expert-worker/store/expert_store.h"

#include <utility>

#include "services/base/status.h"
#include "services/model/tensor_names.h"

namespace switchyard::worker {
namespace {

using checkpoint::MappedTensor;
using checkpoint::TensorRange;
using checkpoint::TensorSource;

absl::Status Check(const TensorSource& source, const TensorSlice& slice) {
  const checkpoint::TensorInfo* info = source.Find(slice.tensor.name);
  if (info == nullptr) {
    return NotFound("tensor {} is not in the checkpoint", slice.tensor.name);
  }
  return CheckTensor(slice.tensor, info->dtype, info->shape, !info->scales.empty());
}

// The slice as a matrix; of a stacked tensor the one expert's.
absl::StatusOr<WeightView> Matrix(const TensorSource& source, const TensorSlice& slice,
                                  WeightLayout layout) {
  SY_ASSIGN_OR_RETURN(const MappedTensor mapped,
                      source.Get({slice.tensor.name, slice.first, slice.count}));
  return MatrixOf(mapped, layout);
}

absl::StatusOr<VectorView> Vector(const TensorSource& source, const TensorSlice& slice) {
  if (!slice) return VectorView{};
  SY_ASSIGN_OR_RETURN(const MappedTensor mapped,
                      source.Get({slice.tensor.name, slice.first, slice.count}));
  return VectorView{.data = mapped.data, .dtype = mapped.dtype, .size = slice.tensor.shape.back()};
}

}  // namespace

absl::StatusOr<ExpertStore> ExpertStore::Open(const ModelSpec& spec, const std::vector<bool>& held,
                                              std::shared_ptr<TensorSource> source) {
  ExpertStore store;
  store.source_ = std::move(source);
  store.layers_ = spec.num_layers();
  store.experts_ = spec.experts.count;
  store.weights_.resize(static_cast<size_t>(store.layers_ * store.experts_));
  std::vector<TensorRange> ranges;
  for (int layer = 0; layer < spec.num_layers(); ++layer) {
    if (!spec.layers[layer].moe) continue;
    for (int expert = 0; expert < spec.experts.count; ++expert) {
      if (!held[expert]) continue;
      for (const TensorSlice& slice : AllSlices(ExpertTensorsOf(spec, layer, expert))) {
        SY_RETURN_IF_ERROR(Check(*store.source_, slice));
        ranges.push_back({slice.tensor.name, slice.first, slice.count});
      }
    }
  }
  SY_RETURN_IF_ERROR(store.source_->Map(ranges));
  for (int layer = 0; layer < spec.num_layers(); ++layer) {
    if (!spec.layers[layer].moe) continue;
    for (int expert = 0; expert < spec.experts.count; ++expert) {
      if (held[expert]) SY_RETURN_IF_ERROR(store.Bind(spec, layer, expert));
    }
  }
  return store;
}

absl::Status ExpertStore::Bind(const ModelSpec& spec, int layer, int expert) {
  const ExpertTensors tensors = ExpertTensorsOf(spec, layer, expert);
  ExpertWeights w;
  if (tensors.gate_up) {
    const bool out_in = spec.experts.stacked_out_in;
    const WeightLayout layout = out_in ? WeightLayout::kOutIn : WeightLayout::kInOut;
    const TensorSlice& down = out_in ? tensors.down : tensors.down_in_out;
    SY_ASSIGN_OR_RETURN(w.gate_up, Matrix(*source_, tensors.gate_up, layout));
    SY_ASSIGN_OR_RETURN(w.down, Matrix(*source_, down, layout));
  } else {
    SY_ASSIGN_OR_RETURN(w.gate, Matrix(*source_, tensors.gate, WeightLayout::kOutIn));
    SY_ASSIGN_OR_RETURN(w.up, Matrix(*source_, tensors.up, WeightLayout::kOutIn));
    SY_ASSIGN_OR_RETURN(w.down, Matrix(*source_, tensors.down, WeightLayout::kOutIn));
  }
  SY_ASSIGN_OR_RETURN(w.gate_bias, Vector(*source_, tensors.gate_bias));
  SY_ASSIGN_OR_RETURN(w.up_bias, Vector(*source_, tensors.up_bias));
  SY_ASSIGN_OR_RETURN(w.gate_up_bias, Vector(*source_, tensors.gate_up_bias));
  SY_ASSIGN_OR_RETURN(w.down_bias, Vector(*source_, tensors.down_bias));
  bytes_ += w.gate.bytes() + w.up.bytes() + w.gate_up.bytes() + w.down.bytes();
  for (const VectorView* v : {&w.gate_bias, &w.up_bias, &w.gate_up_bias, &w.down_bias}) {
    bytes_ += static_cast<size_t>(BytesOf(v->dtype, v->size));
  }
  ++count_;
  weights_[static_cast<size_t>(layer * experts_ + expert)] = w;
  return absl::OkStatus();
}

const ExpertWeights* ExpertStore::Find(int64_t layer, int64_t expert) const {
  if (layer < 0 || layer >= layers_ || expert < 0 || expert >= experts_) return nullptr;
  const ExpertWeights& w = weights_[static_cast<size_t>(layer * experts_ + expert)];
  return w.down ? &w : nullptr;
}

}  // namespace switchyard::worker
