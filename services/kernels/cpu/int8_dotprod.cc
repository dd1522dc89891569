// Weights of integers with NEON's dot products (FEAT_DotProd).
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "services/kernels/cpu/target.h"
#include "services/kernels/cpu/targets.h"

SY_TARGET_BEGIN(SY_DOTPROD)
namespace switchyard::kernels {
namespace {
// Each builds on those before it.
// clang-format off
#include "services/kernels/cpu/int8_lanes_neon.inc"

// Not the intrinsic: clang 14 has it only where whole files are compiled for it.
inline int32x4_t DotFour(int32x4_t acc, int8x16_t w, int8x16_t x) {
  __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(w), "w"(x));
  return acc;
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
}  // namespace

void MatMulInt8Dotprod(const MatMulTask& task, const QuantizedRows& x, int64_t m0, int64_t m1,
                       int64_t n0, int64_t n1, float* scratch) {
  MatMulInt8<RowWalk>(task, x, m0, m1, n0, n1, scratch);
}

}  // namespace switchyard::kernels
SY_TARGET_END
