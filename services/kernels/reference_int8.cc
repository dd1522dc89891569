// Products of bf16 rows with weights of integers, as plain loops: the portable target, and the
// truth of the others.
#include <algorithm>
#include <cmath>
#include <limits>

#include "services/kernels/blocks.h"
#include "services/kernels/ops.h"

namespace switchyard::kernels {
namespace {

void QuantizeSubBlock(const bf16* x, const QuantizedRow& out) {
  uint32_t max = 0;
  for (int i = 0; i < kSubBlock; ++i) max = std::max<uint32_t>(max, x[i].bits & 0x7fffu);
  std::fill_n(out.q, kSubBlock, int8_t{0});
  *out.nsum = *out.nhalf = 0;
  *out.scale = *out.nmin = max < 0x7f80 ? 0 : std::numeric_limits<float>::quiet_NaN();
  if (max < kSmallestMax || max >= 0x7f80) return;
  const float largest = ToFloat(bf16{static_cast<uint16_t>(max)});
  *out.scale = largest / 127.0f;
  const float inverse = 127.0f / largest;
  for (int i = 0; i < kSubBlock; ++i) {
    out.q[i] = static_cast<int8_t>(std::lrint(ToFloat(x[i]) * inverse));
    *out.nsum -= out.q[i];
    if (i < 16) *out.nhalf -= out.q[i];
  }
  *out.nmin = *out.scale * static_cast<float>(*out.nsum);
}

// Exact: its magnitude is below 2^24.
int32_t IntegerDot(const SubBlock& w, const int8_t* q) {
  int32_t sum = 0;
  for (int half = 0; half < 2; ++half) {
    int32_t part = 0;
    for (int i = 16 * half; i < 16 * half + 16; ++i) part += int32_t{w.q[i]} * q[i];
    sum += w.scale[half] * part;
  }
  return sum;
}

bool HasMin(DType dtype) { return dtype == DType::kQ4K || dtype == DType::kQ5K; }

}  // namespace

void QuantizeReference(const bf16* x, int64_t in, const QuantizedRow& out) {
  for (int64_t b = 0; b < in / kSubBlock; ++b) {
    QuantizeSubBlock(x + b * kSubBlock, out.At(b));
  }
}

void MatMulInt8Reference(const MatMulTask& task, const QuantizedRows& x, int64_t m0, int64_t m1,
                         int64_t n0, int64_t n1, float*) {
  const bool has_min = HasMin(task.w.dtype);
  for (int64_t n = n0; n < n1; ++n) {
    for (int64_t m = m0; m < m1; ++m) task.y[m * task.y_stride + n] = 0;
    for (int64_t b = 0; b < task.w.in / kSubBlock; ++b) {
      SubBlock block;
      ReadSubBlock(task.w, n, b, &block);
      for (int64_t m = m0; m < m1; ++m) {
        const QuantizedRow row = x.row(m);
        float& y = task.y[m * task.y_stride + n];
        const float dot = static_cast<float>(IntegerDot(block, row.q + b * kSubBlock));
        y = std::fma(dot, row.scale[b] * block.d, y);
        if (has_min) y = std::fma(row.nmin[b], block.min, y);
      }
    }
    if (!task.bias) continue;
    for (int64_t m = m0; m < m1; ++m) task.y[m * task.y_stride + n] += LoadOne(task.bias, n);
  }
}

}  // namespace switchyard::kernels
