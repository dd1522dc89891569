#include "tests/support/moe_fixture.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "services/base/status.h"
#include "services/model/tensor_names.h"

namespace switchyard::testing {

using checkpoint::MappedTensor;
using checkpoint::TensorInfo;
using checkpoint::TensorRange;

ModelSpec MoeSpec(const MoeShape& shape) {
  ModelSpec spec;
  const bool gpt_oss = shape.stacked || shape.biased;
  spec.family = gpt_oss ? Family::kGptOss : Family::kDeepseekV3;
  spec.hidden = shape.hidden;
  spec.layers.resize(shape.layers);
  for (int i = gpt_oss ? 0 : 1; i < shape.layers; ++i) spec.layers[i].moe = true;
  spec.gate.groups = shape.groups;
  spec.gate.top_k = shape.top_k;
  spec.experts.count = shape.experts;
  spec.experts.intermediate = shape.intermediate;
  spec.experts.stacked = shape.stacked;
  if (gpt_oss) {
    spec.experts.bias = true;
    spec.experts.activation = Activation::kClampedSwiglu;
    spec.experts.swiglu_limit = 7.0f;
  }
  return spec;
}

MemorySource::MemorySource(const ModelSpec& spec, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.2f);
  for (int layer = 0; layer < spec.num_layers(); ++layer) {
    if (!spec.layers[layer].moe) continue;
    for (int expert = 0; expert < spec.experts.count; ++expert) {
      for (const TensorSlice& slice : AllSlices(ExpertTensorsOf(spec, layer, expert))) {
        auto [it, fresh] = data_.try_emplace(slice.tensor.name);
        if (!fresh) continue;
        const auto& shape = slice.tensor.shape;
        it->second.resize(static_cast<size_t>(
            std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>())));
        for (bf16& value : it->second) value = ToBF16(normal(random));
        infos_.push_back({slice.tensor.name, DType::kBF16, shape, it->second.size() * 2, 0, 0});
      }
    }
  }
}

const TensorInfo* MemorySource::Find(std::string_view name) const {
  for (const TensorInfo& info : infos_) {
    if (info.name == name) return &info;
  }
  return nullptr;
}

absl::Status MemorySource::Map(const std::vector<TensorRange>& ranges) {
  mapped.insert(mapped.end(), ranges.begin(), ranges.end());
  return absl::OkStatus();
}

absl::StatusOr<MappedTensor> MemorySource::Get(const TensorRange& range) const {
  const bool inside = std::any_of(mapped.begin(), mapped.end(), [&](const TensorRange& m) {
    return m.name == range.name && m.first == range.first && m.count == range.count;
  });
  if (!inside) return FailedPrecondition("{} was not mapped", range.name);
  const TensorInfo& info = *Find(range.name);
  const size_t row = info.bytes / static_cast<size_t>(info.shape[0]);
  std::vector<int64_t> shape = info.shape;
  if (range.count >= 0) shape[0] = range.count;
  const auto* data = reinterpret_cast<const std::byte*>(data_.at(range.name).data());
  return MappedTensor{data + row * static_cast<size_t>(range.first), info.dtype, shape};
}

MoeBatch::MoeBatch(const ModelSpec& spec, DType dtype, int64_t n, uint32_t seed)
    : tokens(n),
      x(static_cast<size_t>(n * spec.hidden) * sizeof(float)),
      out(static_cast<size_t>(n * spec.hidden), std::nanf("")),
      lost(static_cast<size_t>(n), 0) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < n * spec.hidden; ++i) {
    const float value = normal(random);
    if (dtype == DType::kF32) {
      x.as<float>()[i] = value;
    } else {
      x.as<bf16>()[i] = ToBF16(value);
    }
  }
  std::vector<int32_t> ids(static_cast<size_t>(spec.experts.count));
  std::iota(ids.begin(), ids.end(), 0);
  for (int64_t t = 0; t < n; ++t) {
    std::shuffle(ids.begin(), ids.end(), random);
    std::sort(ids.begin(), ids.begin() + spec.gate.top_k);
    experts.insert(experts.end(), ids.begin(), ids.begin() + spec.gate.top_k);
    for (int k = 0; k < spec.gate.top_k; ++k) weights.push_back(std::abs(normal(random)));
  }
}

namespace {

WeightView Matrix(const checkpoint::TensorSource& source, const TensorSlice& slice,
                  WeightLayout layout) {
  return MatrixOf(*source.Get({slice.tensor.name, slice.first, slice.count}), layout);
}

VectorView Vector(const checkpoint::TensorSource& source, const TensorSlice& slice) {
  if (!slice) return {};
  const MappedTensor mapped = *source.Get({slice.tensor.name, slice.first, slice.count});
  return {mapped.data, mapped.dtype, slice.tensor.shape.back()};
}

std::vector<float> PlainFfn(const ModelSpec& spec, const checkpoint::TensorSource& source,
                            const kernels::Compute& compute, DType dtype, int layer, int expert,
                            const void* row) {
  const ExpertTensors t = ExpertTensorsOf(spec, layer, expert);
  const int64_t width = spec.experts.intermediate;
  const kernels::Rows x{row, dtype, spec.hidden};
  std::vector<float> gate_up(static_cast<size_t>(2 * width));
  if (spec.experts.stacked) {
    compute.MatMul({x, 1, nullptr, Matrix(source, t.gate_up, WeightLayout::kInOut),
                    Vector(source, t.gate_up_bias), gate_up.data(), 2 * width});
  } else {
    compute.MatMul({x, 1, nullptr, Matrix(source, t.gate, WeightLayout::kOutIn),
                    Vector(source, t.gate_bias), gate_up.data(), 2 * width});
    compute.MatMul({x, 1, nullptr, Matrix(source, t.up, WeightLayout::kOutIn),
                    Vector(source, t.up_bias), gate_up.data() + width, 2 * width});
  }
  AlignedBuffer inner(static_cast<size_t>(width) * sizeof(float));
  const kernels::Compute::ActivationTask act{.gate_up = gate_up.data(),
                                             .stride = 2 * width,
                                             .rows = 1,
                                             .width = width,
                                             .interleaved = spec.experts.stacked,
                                             .clamped = spec.experts.bias,
                                             .limit = spec.experts.swiglu_limit,
                                             .alpha = spec.experts.swiglu_alpha,
                                             .out = {inner.data(), dtype, width}};
  compute.Activate(std::span(&act, 1));
  std::vector<float> y(static_cast<size_t>(spec.hidden));
  const WeightView down = spec.experts.stacked ? Matrix(source, t.down_in_out, WeightLayout::kInOut)
                                               : Matrix(source, t.down, WeightLayout::kOutIn);
  compute.MatMul({{inner.data(), dtype, width},
                  1,
                  nullptr,
                  down,
                  Vector(source, t.down_bias),
                  y.data(),
                  spec.hidden});
  return y;
}

}  // namespace

std::vector<float> PlainMoe(const ModelSpec& spec, const checkpoint::TensorSource& source,
                            const kernels::Compute& compute, DType dtype, int layer,
                            const MoeBatch& batch) {
  std::vector<float> out(static_cast<size_t>(batch.tokens * spec.hidden), 0.0f);
  const int top_k = spec.gate.top_k;
  for (int64_t t = 0; t < batch.tokens; ++t) {
    const std::byte* row = batch.x.data() + static_cast<size_t>(t * spec.hidden) * SizeOf(dtype);
    float* to = out.data() + t * spec.hidden;
    for (int k = 0; k < top_k;) {
      const int group = spec.reduction_group(batch.experts[t * top_k + k]);
      std::vector<float> sum(static_cast<size_t>(spec.hidden), 0.0f);
      for (; k < top_k && spec.reduction_group(batch.experts[t * top_k + k]) == group; ++k) {
        const auto y =
            PlainFfn(spec, source, compute, dtype, layer, batch.experts[t * top_k + k], row);
        for (int i = 0; i < spec.hidden; ++i) {
          sum[i] = std::fma(batch.weights[t * top_k + k], y[i], sum[i]);
        }
      }
      for (int i = 0; i < spec.hidden; ++i) {
        to[i] += dtype == DType::kF32 ? sum[i] : ToFloat(ToBF16(sum[i]));
      }
    }
  }
  return out;
}

}  // namespace switchyard::testing
