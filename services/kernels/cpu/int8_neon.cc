// Weights of integers with NEON, and the quantisation of rows for every Arm target.
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "services/kernels/cpu/target.h"
#include "services/kernels/cpu/targets.h"

namespace switchyard::kernels {
namespace {
// Each builds on those before it.
// clang-format off
#include "services/kernels/cpu/int8_lanes_neon.inc"

// Pairs of products are words: at most 2 · 128 · 127.
inline int32x4_t DotFour(int32x4_t acc, int8x16_t w, int8x16_t x) {
  const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
  return vpadalq_s16(acc, vpaddq_s16(low, vmull_high_s8(w, x)));
}
template <bool>
SY_INLINE I DotQuad(I acc, I w, const int8_t* x) {
  const int8x16_t quad = BroadcastQuad(x);
  return {DotFour(acc.lo, SignedBytes(w.lo), quad), DotFour(acc.hi, SignedBytes(w.hi), quad)};
}

#include "services/kernels/cpu/int8_formats.inc"
#include "services/kernels/cpu/int8_tiles.inc"
#include "services/kernels/cpu/int8_packed.inc"
#include "services/kernels/cpu/int8_rows.inc"
#include "services/kernels/cpu/int8_outputs.inc"
// clang-format on

// Eight values rounded to integers, as bytes.
inline int8x8_t Quantized(uint16x8_t x, float inverse) {
  const float32x4_t low = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(x), 16));
  const float32x4_t high = vreinterpretq_f32_u32(vshll_high_n_u16(x, 16));
  const int16x4_t words = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(low, inverse)));
  return vmovn_s16(vmovn_high_s32(words, vcvtnq_s32_f32(vmulq_n_f32(high, inverse))));
}

void QuantizeSubBlock(const bf16* x, const QuantizedRow& out) {
  uint16x8_t values[4];
  uint16x8_t magnitudes = vdupq_n_u16(0);
  SY_UNROLL
  for (int i = 0; i < 4; ++i) {
    values[i] = vld1q_u16(reinterpret_cast<const uint16_t*>(x) + 8 * i);
    magnitudes = vmaxq_u16(magnitudes, vandq_u16(values[i], vdupq_n_u16(0x7fff)));
  }
  const uint16_t largest = vmaxvq_u16(magnitudes);
  if (largest < kSmallestMax || largest >= 0x7f80) {
    vst1q_s8(out.q, vdupq_n_s8(0));
    vst1q_s8(out.q + 16, vdupq_n_s8(0));
    *out.nsum = *out.nhalf = 0;
    *out.scale = *out.nmin = largest < 0x7f80 ? 0 : __builtin_nanf("");
    return;
  }
  const float max = ToFloat(bf16{largest}), inverse = 127.0f / max;
  const int8x16_t first = vcombine_s8(Quantized(values[0], inverse), Quantized(values[1], inverse));
  const int8x16_t second =
      vcombine_s8(Quantized(values[2], inverse), Quantized(values[3], inverse));
  vst1q_s8(out.q, first);
  vst1q_s8(out.q + 16, second);
  *out.nhalf = -vaddlvq_s8(first);
  *out.nsum = *out.nhalf - vaddlvq_s8(second);
  *out.scale = max / 127.0f;
  *out.nmin = *out.scale * static_cast<float>(*out.nsum);
}

}  // namespace

void QuantizeNeon(const bf16* x, int64_t in, const QuantizedRow& out) {
  for (int64_t b = 0; b < in / kSubBlock; ++b) {
    QuantizeSubBlock(x + b * kSubBlock, out.At(b));
  }
}

void MatMulInt8Neon(const MatMulTask& task, const QuantizedRows& x, int64_t m0, int64_t m1,
                    int64_t n0, int64_t n1, float* scratch) {
  MatMulInt8<RowWalk>(task, x, m0, m1, n0, n1, scratch);
}

}  // namespace switchyard::kernels
