// exp as services/kernels/scalar_math.h has it, the same bits: what chooses experts and tokens by
// the same logits then chooses the same ones as a CPU does.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace switchyard::cuda {

// Products are kept from being fused with what is added to them: one compiler would, another not.
__device__ __forceinline__ float Exp(float x) {
  constexpr float kMagic = 0x1.8p23f;  // adding it rounds to an integer in the low bits
  x = x > -105.0f ? x : x == x ? -105.0f : x;
  x = x < 89.0f ? x : x == x ? 89.0f : x;
  const float shifted = fmaf(x, 0x1.715476p+0f, kMagic);
  const float n = shifted - kMagic;
  const float r = fmaf(n, -0x1.7f7d1cp-20f, fmaf(n, -0x1.62e4p-1f, x));
  float p = fmaf(1.0f / 5040, r, 1.0f / 720);
  p = fmaf(p, r, 1.0f / 120);
  p = fmaf(p, r, 1.0f / 24);
  p = fmaf(p, r, 1.0f / 6);
  p = fmaf(p, r, 0.5f);
  p = fmaf(p, r, 1.0f);
  p = fmaf(p, r, 1.0f);
  const uint32_t whole = __float_as_uint(shifted) - __float_as_uint(kMagic);
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(whole) >> 1);
  return __fmul_rn(__fmul_rn(p, __uint_as_float((half + 127u) << 23)),
                   __uint_as_float((whole - half + 127u) << 23));
}

// Numbers in the order of floats: zeros are equal, NaN is below all.
__device__ __forceinline__ uint32_t OrderOf(float x) {
  if (!(x == x)) return 0;
  const uint32_t bits = __float_as_uint(x == 0 ? 0.0f : x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

}  // namespace switchyard::cuda
