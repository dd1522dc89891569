// NEON as every AArch64 CPU has it.
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "services/kernels/cpu/target.h"
#include "services/kernels/cpu/targets.h"
#include "services/kernels/scalar_math.h"

namespace switchyard::kernels {
namespace {
// Each builds on those before it.
// clang-format off
#include "services/kernels/cpu/lanes_neon.inc"
#include "services/kernels/cpu/partial.inc"
#include "services/kernels/cpu/exp.inc"
#include "services/kernels/cpu/rows.inc"
#include "services/kernels/cpu/dot_neon.inc"
#include "services/kernels/cpu/matmul.inc"
#include "services/kernels/cpu/packed.inc"
#include "services/kernels/cpu/attention.inc"
#include "services/kernels/cpu/fma_ops.inc"
// clang-format on
}  // namespace

constinit const Ops kNeonOps = MakeOps(QuantizeNeon, MatMulInt8Neon, 15);

}  // namespace switchyard::kernels
