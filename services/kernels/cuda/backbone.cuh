// What lies between the backbone's parts: the residual's sums, and inputs of the gate.
//
// The gate's logits decide which experts a row goes to, and are wanted of unrounded inputs, while
// products take bf16. A float32 number is the sum of three of bf16 (8 bits of each are its 24), so
// the gate multiplies three planes, and its logits are the sum of three rows. The first plane is
// the rows as they go out to experts.
#pragma once

#include "services/kernels/cuda/backbone.h"
#include "services/kernels/cuda/launch.cuh"
#include "services/kernels/cuda/norm.cuh"
#include "services/kernels/cuda/ptx.cuh"

namespace switchyard::cuda {

// x [n] becomes planes [kPlanes][n], n a multiple of 4.
static __global__ void __launch_bounds__(kRowThreads)
    SplitPlanes(const float* x, int64_t n, uint16_t* planes) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x) * 4;
  if (at >= n) return;
  float4 v = LoadFour(x + at);
  SY_CUDA_UNROLL
  for (int plane = 0; plane < kPlanes; ++plane) {
    const uint2 bits = {Pack2(v.x, v.y), Pack2(v.z, v.w)};
    *reinterpret_cast<uint2*>(planes + plane * n + at) = bits;
    v = {v.x - FromBf16(bits.x & 0xffffu), v.y - FromBf16(bits.x >> 16),
         v.z - FromBf16(bits.y & 0xffffu), v.w - FromBf16(bits.y >> 16)};
  }
}

// out[r, i] = (x[0][r, i] + x[1][r, i]) + x[2][r, i] + bias[i], of [rows, width].
static __global__ void __launch_bounds__(kRowThreads)
    SumPlanes(const float* x, int64_t rows, int32_t width, const float* bias, float* out) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x, n = rows * width;
  if (at >= n) return;
  const float sum = x[at] + x[n + at] + x[2 * n + at];
  out[at] = bias == nullptr ? sum : sum + bias[at % width];
}

// x = (x + a) + b of [n], a multiple of 4; b may be null.
static __global__ void __launch_bounds__(kRowThreads)
    AddTo(float* x, const float* a, const float* b, int64_t n) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x) * 4;
  if (at >= n) return;
  float4 v = LoadFour(x + at);
  const float4 first = LoadFour(a + at);
  v = {v.x + first.x, v.y + first.y, v.z + first.z, v.w + first.w};
  if (b != nullptr) {
    const float4 second = LoadFour(b + at);
    v = {v.x + second.x, v.y + second.y, v.z + second.z, v.w + second.w};
  }
  *reinterpret_cast<float4*>(x + at) = v;
}

// ---- host ----

// Blocks for n numbers of which a thread takes `each`.
inline dim3 BlocksFor(int64_t n, int each) {
  const int64_t numbers = int64_t{kRowThreads} * each;
  return {static_cast<unsigned>((n + numbers - 1) / numbers)};
}

}  // namespace switchyard::cuda
