#include "expert-worker/device/pack_expert.h"

#include <cstring>

#include "services/base/status.h"
#include "services/kernels/cuda/expert_block.h"
#include "services/kernels/kernels.h"
#include "services/kernels/pack_tiles.h"

namespace switchyard::worker {
namespace {

using cuda::GateUpRow;
using cuda::TileShape;
using kernels::PackTiles;
using kernels::RowPlace;

absl::StatusOr<SyCudaMatrix> MatrixOf(const WeightView& w, int rows, std::string_view name) {
  const absl::StatusOr<TileShape> shape = kernels::TileShapeOf(w);
  if (!shape.ok()) return Annotate(shape.status(), name);
  return SyCudaMatrix{.format = static_cast<int32_t>(shape->format),
                      .rows = rows,
                      .columns = shape->columns,
                      .group = shape->group,
                      .group_rows = shape->group_rows,
                      .zeros = shape->zeros ? 1 : 0};
}

bool Same(const SyCudaMatrix& a, const SyCudaMatrix& b) {
  return a.format == b.format && a.rows == b.rows && a.columns == b.columns && a.group == b.group &&
         a.group_rows == b.group_rows && a.zeros == b.zeros;
}

void PackBias(const VectorView& bias, const RowPlace& place, std::byte* to) {
  if (!bias) return;
  std::vector<float> values(static_cast<size_t>(bias.size));
  kernels::ConvertToFloat(bias.data, bias.dtype, bias.size, values.data());
  for (int32_t i = 0; i < bias.size; ++i) {
    std::memcpy(to + sizeof(float) * static_cast<size_t>(place(i)), &values[static_cast<size_t>(i)],
                sizeof(float));
  }
}

}  // namespace

absl::StatusOr<SyCudaFfnSpec> FfnSpecOf(const ModelSpec& model, const ExpertWeights& weights) {
  const ExpertSpec& experts = model.experts;
  SyCudaFfnSpec spec{.hidden = model.hidden,
                     .intermediate = experts.intermediate,
                     .bias = weights.down_bias ? 1 : 0,
                     .clamped = experts.activation == Activation::kClampedSwiglu ? 1 : 0,
                     .limit = experts.swiglu_limit,
                     .alpha = experts.swiglu_alpha};
  const int rows = 2 * experts.intermediate;
  if (experts.intermediate % 8 != 0) {
    return InvalidArgument("experts are {} wide; CUDA devices take multiples of 8",
                           experts.intermediate);
  }
  if (weights.gate_up) {
    SY_ASSIGN_OR_RETURN(spec.gate_up, MatrixOf(weights.gate_up, rows, "gate and up"));
  } else {
    SY_ASSIGN_OR_RETURN(spec.gate_up, MatrixOf(weights.gate, rows, "gate"));
    SY_ASSIGN_OR_RETURN(const SyCudaMatrix up, MatrixOf(weights.up, rows, "up"));
    if (!Same(spec.gate_up, up)) {
      return InvalidArgument("gate and up are of different formats; CUDA devices take them of one");
    }
  }
  SY_ASSIGN_OR_RETURN(spec.down, MatrixOf(weights.down, model.hidden, "down"));
  return spec;
}

void PackExpert(const SyCudaFfnSpec& spec, const ExpertWeights& weights, std::byte* block) {
  const cuda::ExpertBlock at(spec);
  std::memset(block, 0, at.bytes);  // padding is of zeros
  const RowPlace gate = [](int32_t row) { return GateUpRow(row, false); };
  const RowPlace up = [](int32_t row) { return GateUpRow(row, true); };
  const RowPlace both = [](int32_t row) { return GateUpRow(row / 2, row % 2 == 1); };
  const RowPlace same = [](int32_t row) { return row; };
  if (weights.gate_up) {
    PackTiles(weights.gate_up, at.gate_up, both, block);
    PackBias(weights.gate_up_bias, both, block + at.gate_up_bias_at);
  } else {
    PackTiles(weights.gate, at.gate_up, gate, block);
    PackTiles(weights.up, at.gate_up, up, block);
    PackBias(weights.gate_bias, gate, block + at.gate_up_bias_at);
    PackBias(weights.up_bias, up, block + at.gate_up_bias_at);
  }
  PackTiles(weights.down, at.down, same, block + at.down_at);
  PackBias(weights.down_bias, same, block + at.down_bias_at);
}

}  // namespace switchyard::worker
