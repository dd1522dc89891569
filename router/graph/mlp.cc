#include "router/graph/mlp.h"

#include <algorithm>

namespace switchyard::router {

void Mlp::Run(const MlpWeights& weights, const kernels::Rows& x, int64_t rows, float* out) {
  const kernels::Compute& compute = context_.compute;
  const int64_t width = weights.gate.out, hidden = weights.down.out;
  const int64_t tile = TileRows(rows, 2 * width * static_cast<int64_t>(sizeof(float)));
  const int64_t x_row_bytes = x.stride * static_cast<int64_t>(SizeOf(x.dtype));
  for (int64_t begin = 0; begin < rows; begin += tile) {
    const int64_t n = std::min(tile, rows - begin);
    const kernels::Rows in = {static_cast<const std::byte*>(x.data) + begin * x_row_bytes, x.dtype,
                              x.stride};
    float* gate_up = Floats(gate_up_, n * 2 * width);
    const kernels::MatMulTask tasks[] = {
        {.x = in, .rows = n, .w = weights.gate, .y = gate_up, .y_stride = 2 * width},
        {.x = in, .rows = n, .w = weights.up, .y = gate_up + width, .y_stride = 2 * width}};
    compute.MatMul(tasks);

    const kernels::MutableRows activated = activated_.Reserve(context_.dtype, n, width);
    const kernels::Compute::ActivationTask activation = {
        .gate_up = gate_up, .stride = 2 * width, .rows = n, .width = width, .out = activated};
    compute.Activate({&activation, 1});
    compute.MatMul({.x = AsRows(activated),
                    .rows = n,
                    .w = weights.down,
                    .y = out + begin * hidden,
                    .y_stride = hidden});
  }
}

}  // namespace switchyard::router
