// Which instruction sets this CPU has, and the table of each.
#include <algorithm>

#include <string>

#include "services/base/status.h"
#include "services/kernels/cpu/targets.h"
#include "services/kernels/kernels.h"
#include "services/kernels/ops.h"

namespace switchyard::kernels {
namespace {

constexpr Isa kAll[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

bool Supported(Isa isa) {
#if defined(__x86_64__)
  // The compiler's probe also asks the operating system whether it saves the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
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
    case Isa::kPortable:
      return true;
  }
#endif
  return isa == Isa::kPortable;
}

#if defined(__x86_64__)
const Ops& Avx512Bf16Ops() {
  static const Ops ops = [] {
    Ops made = kAvx512Ops;
    made.mat_mul = MatMulAvx512Bf16;
    made.macs_per_ns = 80;
    return made;
  }();
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
  return isa == Isa::kAvx512Bf16 ? "bf16-avx512bf16" : "bf16-fma";
}

const Ops& OpsFor(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return kAvx2Ops;
    case Isa::kAvx512:
      return kAvx512Ops;
    case Isa::kAvx512Bf16:
      return Avx512Bf16Ops();
#endif
    default:
      return ReferenceFor(Isa::kPortable);
  }
}

}  // namespace switchyard::kernels
