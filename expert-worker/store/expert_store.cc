#include "expert-worker/store/expert_store.h"

#include <algorithm>
#include <utility>

#include "services/base/status.h"
#include "services/checkpoint/weight_check.h"
#include "services/model/tensor_names.h"

namespace switchyard::worker {
namespace {

using checkpoint::MappedTensor;
using checkpoint::TensorInfo;
using checkpoint::TensorRange;
using checkpoint::TensorSource;

// Of the check of an expert that comes while others are computed with.
constexpr int kCheckThreads = 1;

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

// As the headers of the checkpoint have it.
uint64_t BytesOfSlice(const TensorSource& source, const TensorSlice& slice) {
  const TensorInfo* info = source.Find(slice.tensor.name);
  if (info == nullptr || info->shape.empty() || info->shape[0] == 0) return 0;
  const double share = static_cast<double>(slice.count) / static_cast<double>(info->shape[0]);
  return static_cast<uint64_t>(static_cast<double>(info->bytes + info->scale_bytes) * share);
}

}  // namespace

uint64_t ExpertWeights::bytes() const {
  uint64_t bytes = gate.bytes() + up.bytes() + gate_up.bytes() + down.bytes();
  for (const VectorView* v : {&gate_bias, &up_bias, &gate_up_bias, &down_bias}) {
    bytes += static_cast<uint64_t>(BytesOf(v->dtype, v->size));
  }
  return bytes;
}

ExpertStore::ExpertStore(const ModelSpec& spec, std::shared_ptr<TensorSource> source)
    : spec_(spec),
      source_(std::move(source)),
      layers_(spec.num_layers()),
      experts_(spec.experts.count),
      slots_(
          std::make_unique<Slot[]>(static_cast<size_t>(layers_) * static_cast<size_t>(experts_))),
      tried_(static_cast<size_t>(layers_), false) {
  MeasureExperts();
}

// Those of a layer are alike.
void ExpertStore::MeasureExperts() {
  uint64_t bytes = 0, layers = 0;
  for (int32_t layer = 0; layer < layers_; ++layer) {
    if (!Exists({layer, 0})) continue;
    for (const TensorSlice& slice : AllSlices(ExpertTensorsOf(spec_, layer, 0))) {
      bytes += BytesOfSlice(*source_, slice);
    }
    ++layers;
  }
  expert_bytes_ = layers == 0 ? 0 : bytes / layers;
}

absl::StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::Open(
    const ModelSpec& spec, const std::vector<bool>& held, std::shared_ptr<TensorSource> source) {
  std::unique_ptr<ExpertStore> store(new ExpertStore(spec, std::move(source)));
  std::vector<ExpertId> ids;
  std::vector<TensorRange> ranges;
  for (int32_t layer = 0; layer < store->layers_; ++layer) {
    for (int32_t expert = 0; expert < store->experts_; ++expert) {
      const ExpertId id{layer, expert};
      if (!store->Exists(id) || !held[static_cast<size_t>(expert)]) continue;
      SY_RETURN_IF_ERROR(store->Check(id));
      for (TensorRange& range : store->RangesOf(id)) ranges.push_back(std::move(range));
      ids.push_back(id);
    }
  }
  SY_RETURN_IF_ERROR(store->source_->Map(ranges));
  for (const ExpertId id : ids) SY_RETURN_IF_ERROR(store->Hold(id));
  return store;
}

bool ExpertStore::Exists(ExpertId id) const {
  return id.layer >= 0 && id.layer < layers_ && id.expert >= 0 && id.expert < experts_ &&
         spec_.layers[static_cast<size_t>(id.layer)].moe;
}

const ExpertWeights* ExpertStore::Find(int64_t layer, int64_t expert) const {
  if (layer < 0 || layer >= layers_ || expert < 0 || expert >= experts_) return nullptr;
  const Slot& slot = At({static_cast<int32_t>(layer), static_cast<int32_t>(expert)});
  return slot.held.load(std::memory_order_acquire) ? &slot.weights : nullptr;
}

std::vector<TensorRange> ExpertStore::RangesOf(ExpertId id) const {
  std::vector<TensorRange> ranges;
  for (const TensorSlice& slice : AllSlices(ExpertTensorsOf(spec_, id.layer, id.expert))) {
    ranges.push_back({slice.tensor.name, slice.first, slice.count});
  }
  return ranges;
}

absl::Status ExpertStore::Check(ExpertId id) const {
  for (const TensorSlice& slice : AllSlices(ExpertTensorsOf(spec_, id.layer, id.expert))) {
    const TensorInfo* info = source_->Find(slice.tensor.name);
    if (info == nullptr) {
      return NotFound("tensor {} is not in the checkpoint", slice.tensor.name);
    }
    SY_RETURN_IF_ERROR(CheckTensor(slice.tensor, info->dtype, info->shape, !info->scales.empty()));
  }
  return absl::OkStatus();
}

absl::Status ExpertStore::Map(ExpertId id) {
  SY_RETURN_IF_ERROR(Check(id));
  const auto layer = static_cast<size_t>(id.layer);
  if (!tried_[layer]) {
    tried_[layer] = true;
    std::vector<TensorRange> all;
    for (int32_t expert = 0; expert < experts_; ++expert) {
      const ExpertId other{id.layer, expert};
      if (!Check(other).ok()) continue;
      for (TensorRange& range : RangesOf(other)) all.push_back(std::move(range));
    }
    if (source_->Map(all).ok()) return absl::OkStatus();
  }
  return source_->Map(RangesOf(id));  // says what is wrong with this one
}

absl::StatusOr<ExpertWeights> ExpertStore::Bind(ExpertId id) const {
  const ExpertTensors tensors = ExpertTensorsOf(spec_, id.layer, id.expert);
  ExpertWeights w;
  if (tensors.gate_up) {
    const bool out_in = spec_.experts.stacked_out_in;
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
  return w;
}

absl::Status ExpertStore::Hold(ExpertId id) {
  Slot& slot = At(id);
  if (!slot.bound) {
    SY_ASSIGN_OR_RETURN(slot.weights, Bind(id));
    slot.bound = true;
  }
  if (slot.held.exchange(true, std::memory_order_release)) return absl::OkStatus();
  bytes_.fetch_add(slot.weights.bytes(), std::memory_order_relaxed);
  count_.fetch_add(1, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status ExpertStore::Load(ExpertId id, const LoadOptions& options) {
  if (!Exists(id)) return NotFound("the model has no expert {} of layer {}", id.expert, id.layer);
  if (!At(id).bound) SY_RETURN_IF_ERROR(Map(id));
  const std::vector<TensorRange> ranges = RangesOf(id);
  for (const TensorRange& range : ranges) {
    SY_RETURN_IF_ERROR(source_->Populate(range));
    const TensorInfo& info = *source_->Find(range.name);
    const uint64_t rows = info.shape.empty() ? 1 : static_cast<uint64_t>(info.shape[0]);
    const uint64_t bytes = info.bytes / std::max<uint64_t>(1, rows) *
                           static_cast<uint64_t>(std::max<int64_t>(0, range.count));
    if (options.pace && !options.pace(bytes)) return absl::CancelledError();
  }
  if (options.check_weights) {
    SY_RETURN_IF_ERROR(checkpoint::CheckWeights(*source_, ranges, nullptr, kCheckThreads));
  }
  return Hold(id);
}

void ExpertStore::Remove(ExpertId id) {
  Slot& slot = At(id);
  if (!slot.held.exchange(false, std::memory_order_acq_rel)) return;
  bytes_.fetch_sub(slot.weights.bytes(), std::memory_order_relaxed);
  count_.fetch_sub(1, std::memory_order_relaxed);
  Evict(id);
}

absl::Status ExpertStore::Populate(ExpertId id) const {
  for (const TensorRange& range : RangesOf(id)) SY_RETURN_IF_ERROR(source_->Populate(range));
  return absl::OkStatus();
}

void ExpertStore::Evict(ExpertId id) const {
  for (const TensorRange& range : RangesOf(id)) source_->Evict(range);
}

}  // namespace switchyard::worker
