#include "services/kernels/cpu/targets.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "services/kernels/cpu/target.h"
#include "services/kernels/scalar_math.h"

SY_TARGET_BEGIN("avx2,fma,f16c")
namespace switchyard::kernels {
namespace {
// Each builds on those before it.
// clang-format off
#include "services/kernels/cpu/lanes_avx2.inc"
#include "services/kernels/cpu/partial.inc"
#include "services/kernels/cpu/exp.inc"
#include "services/kernels/cpu/rows.inc"
#include "services/kernels/cpu/dot.inc"
#include "services/kernels/cpu/matmul.inc"
#include "services/kernels/cpu/packed.inc"
#include "services/kernels/cpu/attention.inc"
#include "services/kernels/cpu/fma_ops.inc"
// clang-format on
}  // namespace
}  // namespace switchyard::kernels
SY_TARGET_END

namespace switchyard::kernels {
constinit const Ops kAvx2Ops = MakeOps(QuantizeAvx2, MatMulInt8Avx2, 20);
}
#endif
