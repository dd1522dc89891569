// What every part of the forward pass computes with, and the rows that it computes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "router/graph/model_runner.h"
#include "router/kv/kv_storage.h"
#include "services/kernels/kernels.h"
#include "services/model/rope_table.h"
#include "services/model/spec.h"
#include "services/tensor/buffer.h"

namespace switchyard::router {

// Outlives whoever holds a reference to it. Driven by the engine thread.
struct GraphContext {
  const ModelSpec& spec;
  const kernels::Compute& compute;
  const RopeTable& rope;  // reserved up to the largest position of the step
  KvStorage& kv;
  DType dtype;  // of GEMM inputs and wire rows: kF32 or kBF16
};

// Consecutive rows of a step.
struct RowSpan {
  int64_t rows = 0;
  const int32_t* positions = nullptr;            // [rows]
  const int32_t* const* block_tables = nullptr;  // [rows], of the layer's group

  RowSpan Slice(int64_t begin, int64_t count) const {
    return {count, positions + begin, block_tables + begin};
  }
};

// body(begin, end) over pieces of `rows` rows of `row_elements` numbers. The pool runs inline what
// is too little to be worth waking another thread.
template <typename Body>
void ForRows(const kernels::Compute& compute, int64_t rows, int64_t row_elements, Body&& body) {
  constexpr int64_t kGrainElements = 16384;  // some 5 µs of element-wise work
  const int64_t grain = std::max<int64_t>(1, kGrainElements / row_elements);
  compute.pool().ParallelFor(rows, grain, body);
}

// Rows of one tile of a computation whose widest intermediate takes `row_bytes` a row: bounds the
// scratch memory of a long prefill. Rows do not depend on each other, so the cut changes nothing.
inline int64_t TileRows(int64_t rows, int64_t row_bytes) {
  constexpr int64_t kTileBytes = int64_t{16} << 20;
  constexpr int64_t kMinRows = 128;  // weights are read once a tile
  return std::clamp<int64_t>(kTileBytes / row_bytes, kMinRows, std::max(rows, kMinRows));
}

// Rows of GEMM inputs in the activations' dtype, in memory that is reused.
class InputRows {
 public:
  kernels::MutableRows Reserve(DType dtype, int64_t rows, int64_t width) {
    buffer_.Reserve(static_cast<size_t>(rows * width) * SizeOf(dtype));
    return {buffer_.data(), dtype, width};
  }

  // x [rows, width] rounded to the activations' dtype; x itself where that is float32.
  kernels::Rows From(const GraphContext& context, const float* x, int64_t rows, int64_t width) {
    if (context.dtype == DType::kF32) return {x, DType::kF32, width};
    const kernels::MutableRows out = Reserve(context.dtype, rows, width);
    std::byte* base = buffer_.data();
    const int64_t row_bytes = width * static_cast<int64_t>(SizeOf(context.dtype));
    ForRows(context.compute, rows, width, [&](int64_t begin, int64_t end) {
      kernels::Convert(x + begin * width, (end - begin) * width, context.dtype,
                       base + begin * row_bytes);
    });
    return {out.data, out.dtype, out.stride};
  }

 private:
  AlignedBuffer buffer_;
};

inline kernels::Rows AsRows(const kernels::MutableRows& rows) {
  return {rows.data, rows.dtype, rows.stride};
}

// The same rows from their column `first` on.
inline kernels::Rows Columns(const kernels::Rows& x, int64_t first) {
  const int64_t size = static_cast<int64_t>(SizeOf(x.dtype));
  return {static_cast<const std::byte*>(x.data) + first * size, x.dtype, x.stride};
}

// n floats of a reused buffer.
inline float* Floats(AlignedBuffer& buffer, int64_t n) {
  buffer.Reserve(static_cast<size_t>(n) * sizeof(float));
  return buffer.as<float>();
}

// residual += y, both [rows, width].
inline void AddRows(const kernels::Compute& compute, float* residual, const float* y, int64_t rows,
                    int64_t width) {
  ForRows(compute, rows, width, [&](int64_t begin, int64_t end) {
    kernels::Add(residual + begin * width, y + begin * width, (end - begin) * width);
  });
}

}  // namespace switchyard::router
