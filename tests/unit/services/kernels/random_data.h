// Random operands for the kernel tests, their results, and equality of bits with all NaNs counted
// as one.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "services/kernels/kernels.h"
#include "services/tensor/dtype.h"

namespace switchyard::kernels {

inline std::vector<float> RandomFloats(int64_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& v : values) v = normal(random);
  return values;
}

// `values` in memory as `dtype`, starting `offset` elements into the block (to try alignments).
inline std::vector<std::byte> Stored(const std::vector<float>& values, DType dtype,
                                     size_t offset = 0) {
  std::vector<std::byte> out((values.size() + offset) * SizeOf(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    std::byte* at = out.data() + (i + offset) * SizeOf(dtype);
    const bf16 b = ToBF16(values[i]);
    const f16 h = ToF16(values[i]);
    if (dtype == DType::kBF16) std::memcpy(at, &b, 2);
    if (dtype == DType::kF16) std::memcpy(at, &h, 2);
    if (dtype == DType::kF32) std::memcpy(at, &values[i], 4);
  }
  return out;
}

inline float At(const std::byte* data, DType dtype, int64_t i) {
  if (dtype == DType::kBF16) return ToFloat(reinterpret_cast<const bf16*>(data)[i]);
  if (dtype == DType::kF16) return ToFloat(reinterpret_cast<const f16*>(data)[i]);
  return reinterpret_cast<const float*>(data)[i];
}

inline bool SameBits(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

// The first index at which bits differ, or -1.
inline int64_t FirstDifference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!SameBits(a[i], b[i])) return static_cast<int64_t>(i);
  }
  return -1;
}

// The task with its result in `size` floats of its own, which say -77 where nothing was written;
// run(copy) computes it.
template <typename RunTask>
std::vector<float> ResultOf(const MatMulTask& task, size_t size, RunTask run) {
  std::vector<float> result(size, -77.0f);
  MatMulTask copy = task;
  copy.y = result.data();
  run(copy);
  return result;
}

// Row m of the task computed with no other beside it.
inline std::vector<float> RowAlone(const Compute& compute, const MatMulTask& task, int64_t m) {
  const int32_t row = static_cast<int32_t>(m);
  MatMulTask one = task;
  one.rows = 1;
  one.gather = &row;
  return ResultOf(one, static_cast<size_t>(task.w.out),
                  [&](const MatMulTask& copy) { compute.MatMul(copy); });
}

}  // namespace switchyard::kernels
