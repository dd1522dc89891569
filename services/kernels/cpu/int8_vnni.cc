// Weights of integers with AVX-512 and VNNI.
#include "services/kernels/cpu/targets.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "services/kernels/cpu/target.h"

SY_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
namespace switchyard::kernels {
namespace {
// Each builds on those before it.
// clang-format off
#include "services/kernels/cpu/int8_lanes_avx512.inc"
#include "services/kernels/cpu/int8_formats.inc"
#include "services/kernels/cpu/int8_tiles.inc"
#include "services/kernels/cpu/int8_packed.inc"
#include "services/kernels/cpu/int8_rows.inc"
#include "services/kernels/cpu/int8_outputs.inc"
#include "services/kernels/cpu/int8_direct.inc"
#include "services/kernels/cpu/int8_one_row.inc"
#include "services/kernels/cpu/int8_direct_k.inc"
// clang-format on
}  // namespace

void MatMulInt8Vnni(const MatMulTask& task, const QuantizedRows& x, int64_t m0, int64_t m1,
                    int64_t n0, int64_t n1, float* scratch) {
  if (const MatMulDirectFn direct = MatMulDirectFor(task.w, m1 - m0)) {
    return direct(task, x, m0, m1, n0, n1);
  }
  MatMulInt8<RowWalk>(task, x, m0, m1, n0, n1, scratch);
}

}  // namespace switchyard::kernels
SY_TARGET_END
#endif
