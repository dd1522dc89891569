// Products with quantised weights in float32.
#include "services/kernels/ops.h"

namespace switchyard::kernels {
namespace {

// Outputs [n, n + outputs) with the weights of `view`.
void MatMulWith(const Ops& ops, const MatMulTask& task, const WeightView& view, int64_t m0,
                int64_t m1, int64_t n, float* scratch) {
  MatMulTask part = task;
  part.w = view;
  part.y = task.y + n;
  if (task.bias) {
    part.bias.data = task.bias.data + n * static_cast<int64_t>(SizeOf(task.bias.dtype));
    part.bias.size = view.out;
  }
  ops.mat_mul(part, m0, m1, 0, view.out, scratch);
}

}  // namespace

void MatMulUpcast(const Ops& ops, const MatMulTask& task, int64_t m0, int64_t m1, int64_t n0,
                  int64_t n1, float* scratch) {
  const WeightView& w = task.w;
  const bool out_in = w.layout == WeightLayout::kOutIn;
  const int64_t granule = UpcastOutputs(w);
  for (int64_t n = n0; n < n1; n += granule) {
    const int64_t outputs = n1 - n < granule ? n1 - n : granule;
    const int64_t rows = out_in ? outputs : w.in, columns = out_in ? w.in : outputs;
    for (int64_t i = 0; i < rows; ++i) {
      ops.weights_to_float(w, out_in ? n + i : i, out_in ? 0 : n, columns, scratch + i * columns);
    }
    const WeightView view = {.data = reinterpret_cast<const std::byte*>(scratch),
                             .dtype = DType::kF32,
                             .layout = w.layout,
                             .out = outputs,
                             .in = w.in,
                             .stride = columns};
    MatMulWith(ops, task, view, m0, m1, n, scratch + UpcastFloats(w));
  }
}

}  // namespace switchyard::kernels
