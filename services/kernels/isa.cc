// Which instruction sets this CPU has, and the table of each.
#include <algorithm>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "services/base/status.h"
#include "services/kernels/cpu/targets.h"
#include "services/kernels/kernels.h"
#include "services/kernels/ops.h"

namespace switchyard::kernels {
namespace {

#if defined(__x86_64__)
// Not known to clang 14's probe.
bool HasF16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// Tiles exist, and the kernel lets this process use their registers, which it saves on demand only.
bool HasAmx() {
  static const bool has = [] {
    constexpr unsigned kBF16 = 1u << 22, kTile = 1u << 24;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kBF16) == 0 || (d & kTile) == 0) {
      return false;
    }
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return has;
}
#endif

constexpr Isa kAll[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512,     Isa::kAvx512Bf16,
                        Isa::kAmx,      Isa::kNeon, Isa::kNeonDotprod};

bool Supported(Isa isa) {
#if defined(__x86_64__)
  // The compiler's probe also asks the operating system whether it saves the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  switch (isa) {
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx512Bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
    case Isa::kAmx:
      return avx512 && HasAmx();
    default:
      return isa == Isa::kPortable;
  }
#elif defined(__aarch64__)
  if (isa == Isa::kNeonDotprod) return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  return isa == Isa::kPortable || isa == Isa::kNeon;
#else
  return isa == Isa::kPortable;
#endif
}

#if defined(__x86_64__)
// AVX-512, with VNNI where the CPU has it: blocked products are the same bits.
Ops Avx512() {
  Ops ops = kAvx512Ops;
  if (__builtin_cpu_supports("avx512vnni")) {
    ops.mat_mul_int8 = MatMulInt8Vnni;
    ops.int8_macs_per_ns = 150;
  }
  return ops;
}

bool HasAmxInt8() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return HasAmx() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & 1u << 25) != 0;
}

// AVX-512 with another product of bf16 rows with bf16 weights.
Ops With(decltype(Ops::mat_mul) mat_mul, double bf16_macs_per_ns) {
  Ops ops = Avx512();
  ops.mat_mul = mat_mul;
  ops.bf16_macs_per_ns = bf16_macs_per_ns;
  return ops;
}

Ops Amx() {
  Ops ops = With(MatMulAmx, 150);
  ops.attention = AttentionAmx;
  if (HasAmxInt8() && __builtin_cpu_supports("avx512vnni")) {
    ops.mat_mul_int8 = MatMulInt8Amx;
    ops.int8_macs_per_ns = 250;
  }
  return ops;
}
#elif defined(__aarch64__)
Ops NeonDotprod() {
  Ops ops = kNeonOps;
  ops.mat_mul_int8 = MatMulInt8Dotprod;
  ops.int8_macs_per_ns = 60;
  return ops;
}
#endif

}  // namespace

std::string_view Name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512bf16";
    case Isa::kAmx:
      return "amx";
    case Isa::kNeon:
      return "neon";
    case Isa::kNeonDotprod:
      return "neon-dotprod";
    default:
      return "portable";
  }
}

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas;
  std::ranges::copy_if(kAll, std::back_inserter(isas), Supported);
  return isas;
}

absl::StatusOr<Isa> ChooseIsa(std::string_view name) {
  const std::vector<Isa> isas = SupportedIsas();
  if (name == "auto") return isas.back();
  std::string known;
  for (Isa isa : isas) {
    if (Name(isa) == name) return isa;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", Name(isa));
  }
  return FailedPrecondition("instruction set \"{}\" cannot be used; this CPU supports: auto, {}",
                            name, known);
}

std::string_view ArithmeticClass(DType activations, Isa isa) {
  if (activations == DType::kF32) return "f32";
  switch (isa) {
    case Isa::kAvx512Bf16:
      return "bf16-avx512bf16";
    case Isa::kAmx:
      return "bf16-amx";
    default:
      return "bf16-fma";
  }
}

bool MeetsIntegers(DType weights, WeightLayout layout) {
  return layout == WeightLayout::kOutIn && (IsBlocked(weights) || weights == DType::kI8 ||
                                            weights == DType::kI4 || weights == DType::kE2M1);
}

bool ClassMatters(DType weights, WeightLayout layout) {
  return layout == WeightLayout::kOutIn && (weights == DType::kBF16 || weights == DType::kF8E4M3);
}

const Ops& OpsFor(Isa isa) {
#if defined(__x86_64__)
  static const Ops avx512_ops = Avx512(), bf16_ops = With(MatMulAvx512Bf16, 30), amx_ops = Amx();
#elif defined(__aarch64__)
  static const Ops dotprod_ops = NeonDotprod();
#endif
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return kAvx2Ops;
    case Isa::kAvx512:
      return avx512_ops;
    case Isa::kAvx512Bf16:
      return bf16_ops;
    case Isa::kAmx:
      return amx_ops;
#elif defined(__aarch64__)
    case Isa::kNeon:
      return kNeonOps;
    case Isa::kNeonDotprod:
      return dotprod_ops;
#endif
    default:
      return ReferenceFor(Isa::kPortable);
  }
}

}  // namespace switchyard::kernels
