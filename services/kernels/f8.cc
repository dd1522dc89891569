// Products of bf16 rows with FP8 weights whose scales lie beside them. Weights become bf16 tile by
// tile, which is exact, and the class's own product of bf16 computes with them.
#include <algorithm>

#include "services/kernels/ops.h"

namespace switchyard::kernels {
namespace {

// Asks for the columns that a later tile reads of each row: rows are too many streams for the
// hardware to foresee. Asking beyond the matrix does no harm.
void PrefetchColumns(const std::byte* row) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(row);
  for (uintptr_t b = 0; b < kF8Columns; b += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(at + b), 0, 2);
  }
}

struct F8Tile {
  int64_t n, outputs, k, columns;
};

void Widen(const Ops& ops, const WeightView& w, const F8Tile& t, bf16* to) {
  // The next columns of these rows, behind the last ones those of the next tile's.
  const bool last = t.k + t.columns >= w.in;
  const int64_t ahead = last ? kF8Outputs * w.stride - t.k : kF8Columns;
  for (int64_t i = 0; i < t.outputs; ++i) {
    const std::byte* row = w.data + (t.n + i) * w.stride + t.k;
    PrefetchColumns(row + ahead);
    ops.f8_to_bf16(reinterpret_cast<const f8e4m3*>(row), t.columns, to + i * kF8Columns);
  }
}

// The scales of outputs [n, n + outputs) in group g of columns.
void LoadScales(const WeightView& w, int64_t n, int64_t outputs, int64_t g, float* scales) {
  const int64_t group_rows = w.scales.group_rows;
  for (int64_t i = 0; i < outputs;) {
    const int64_t left = group_rows - (w.scales.first_row + n + i) % group_rows;
    const int64_t end = std::min(outputs, i + left);
    std::fill(scales + i, scales + end, ScaleAt(w, n + i, g));
    i = end;
  }
}

// y[m, n..] = fma(product of the tile, scale, y) for rows [m0, m0 + rows), at most kF8Rows.
void AddTile(const Ops& ops, const MatMulTask& task, const F8Tile& t, int64_t m0, int64_t rows,
             const bf16* weights, const float* scales, float* scratch) {
  MatMulTask part = {.x = task.x, .rows = rows, .y = scratch, .y_stride = kF8Outputs};
  part.x.data = static_cast<const bf16*>(task.x.data) + t.k;
  if (task.gather != nullptr) {
    part.gather = task.gather + m0;
  } else {
    part.x.data = static_cast<const bf16*>(part.x.data) + m0 * task.x.stride;
  }
  part.w = {.data = reinterpret_cast<const std::byte*>(weights),
            .dtype = DType::kBF16,
            .out = t.outputs,
            .in = t.columns,
            .stride = kF8Columns};
  ops.mat_mul(part, 0, rows, 0, t.outputs, scratch + kF8Rows * kF8Outputs);
  for (int64_t m = 0; m < rows; ++m) {
    float* y = task.y + (m0 + m) * task.y_stride + t.n;
    if (t.k == 0) std::fill_n(y, t.outputs, 0.0f);
    ops.add_products(y, scratch + m * kF8Outputs, scales, t.outputs);
  }
}

}  // namespace

void MatMulF8(const Ops& ops, const MatMulTask& task, int64_t m0, int64_t m1, int64_t n0,
              int64_t n1, float* scratch) {
  const WeightView& w = task.w;
  bf16* weights = reinterpret_cast<bf16*>(scratch);
  float* rest = scratch + kF8Outputs * kF8Columns / 2;
  for (int64_t n = n0; n < n1; n += kF8Outputs) {
    F8Tile t = {.n = n, .outputs = std::min(n1 - n, kF8Outputs)};
    alignas(64) float scales[kF8Outputs];
    int64_t group = -1;  // whose scales they are
    for (t.k = 0; t.k < w.in; t.k += kF8Columns) {
      t.columns = std::min(w.in - t.k, kF8Columns);
      Widen(ops, w, t, weights);
      if (const int64_t g = t.k / w.scales.group_columns; g != group) {
        LoadScales(w, n, t.outputs, group = g, scales);
      }
      for (int64_t m = m0; m < m1; m += kF8Rows) {
        AddTile(ops, task, t, m, std::min(m1 - m, kF8Rows), weights, scales, rest);
      }
    }
    for (int64_t m = m0; task.bias && m < m1; ++m) {
      float* y = task.y + m * task.y_stride + n;
      for (int64_t i = 0; i < t.outputs; ++i) y[i] += LoadOne(task.bias, n + i);
    }
  }
}

}  // namespace switchyard::kernels
