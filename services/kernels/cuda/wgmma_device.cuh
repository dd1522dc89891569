// See wgmma.cuh.
#pragma once

namespace switchyard::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

__device__ __forceinline__ void BarrierInit(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void BarriersAreInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void BarrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
__device__ __forceinline__ void BarrierArriveAndExpect(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void BarrierWait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@!ended bra again;\n"
      "}" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void CopyBulk(void* shared, const void* from, int bytes,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(shared)),
      "l"(from), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}
__device__ __forceinline__ void CopyAsync4(void* shared, const void* from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(SharedAddress(shared)),
               "l"(from), "r"(inside ? 4 : 0)
               : "memory");
}
__device__ __forceinline__ void PublishShared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <int kRegisters>
__device__ __forceinline__ void FewerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void MoreRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ uint64_t SwizzledRows(const void* shared) {
  // From bit 0 the address, from 16 what matters to other layouts, from 32 the distance between
  // eights of rows (all in units of 16), from 62 the kind of swizzle: by 128 bytes.
  return uint64_t{SharedAddress(shared) >> 4 & 0x3fff} | uint64_t{1} << 16 | uint64_t{64} << 32 |
         uint64_t{1} << 62;
}

__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kLeft>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
template <int kCount>
__device__ __forceinline__ void Settle(float (&d)[kCount]) {
  SY_CUDA_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// The names of so many operands of an asm statement, and the registers that they are.
#define SY_NAMES_4 "%0, %1, %2, %3"
#define SY_NAMES_8 \
  SY_NAMES_4       \
  ", %4, %5, %6, %7"
#define SY_NAMES_16 \
  SY_NAMES_8        \
  ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SY_NAMES_32 \
  SY_NAMES_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SY_NAMES_64                                                                  \
  SY_NAMES_32                                                                        \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SY_NAMES_96                                                                  \
  SY_NAMES_64                                                                        \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SY_NAMES_128                                                                             \
  SY_NAMES_96                                                                                    \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"
#define SY_REGISTERS_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SY_REGISTERS_8(d, i) SY_REGISTERS_4(d, i), SY_REGISTERS_4(d, i + 4)
#define SY_REGISTERS_16(d, i) SY_REGISTERS_8(d, i), SY_REGISTERS_8(d, i + 8)
#define SY_REGISTERS_32(d, i) SY_REGISTERS_16(d, i), SY_REGISTERS_16(d, i + 16)
#define SY_REGISTERS_64(d, i) SY_REGISTERS_32(d, i), SY_REGISTERS_32(d, i + 32)
#define SY_REGISTERS_96(d, i) SY_REGISTERS_64(d, i), SY_REGISTERS_32(d, i + 64)
#define SY_REGISTERS_128(d, i) SY_REGISTERS_64(d, i), SY_REGISTERS_64(d, i + 64)

#define SY_WGMMA(what, count, a_name, b_name, add_name, tail)             \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " add_name           \
               ", 0;\n"                                                   \
               "wgmma.mma_async.sync.aligned." what " {" SY_NAMES_##count \
               "}, " a_name ", " b_name ", add, 1, 1" tail ";\n}"         \
               : SY_REGISTERS_##count(d, 0)                               \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)))

// The shapes of a type of inputs. Both matrices lie along the inputs, which bf16 alone has to say.
#define SY_WGMMA_SHAPES(k, types, tail)                             \
  if constexpr (kN == 8) {                                          \
    SY_WGMMA("m64n8" k types, 4, "%4", "%5", "%6", tail);           \
  } else if constexpr (kN == 16) {                                  \
    SY_WGMMA("m64n16" k types, 8, "%8", "%9", "%10", tail);         \
  } else if constexpr (kN == 32) {                                  \
    SY_WGMMA("m64n32" k types, 16, "%16", "%17", "%18", tail);      \
  } else if constexpr (kN == 64) {                                  \
    SY_WGMMA("m64n64" k types, 32, "%32", "%33", "%34", tail);      \
  } else if constexpr (kN == 128) {                                 \
    SY_WGMMA("m64n128" k types, 64, "%64", "%65", "%66", tail);     \
  } else if constexpr (kN == 192) {                                 \
    SY_WGMMA("m64n192" k types, 96, "%96", "%97", "%98", tail);     \
  } else {                                                          \
    static_assert(kN == 256);                                       \
    SY_WGMMA("m64n256" k types, 128, "%128", "%129", "%130", tail); \
  }

template <int kN>
__device__ __forceinline__ void WgmmaBf16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add) {
  SY_WGMMA_SHAPES("k16", ".f32.bf16.bf16", ", 0, 0")
}
template <int kN>
__device__ __forceinline__ void WgmmaE4M3(float (&d)[kN / 2], uint64_t a, uint64_t b,
                                          bool add){SY_WGMMA_SHAPES("k32", ".f32.e4m3.e4m3", "")}
#undef SY_WGMMA_SHAPES
#undef SY_WGMMA
#undef SY_NAMES_4
#undef SY_NAMES_8
#undef SY_NAMES_16
#undef SY_NAMES_32
#undef SY_NAMES_64
#undef SY_NAMES_96
#undef SY_NAMES_128
#undef SY_REGISTERS_4
#undef SY_REGISTERS_8
#undef SY_REGISTERS_16
#undef SY_REGISTERS_32
#undef SY_REGISTERS_64
#undef SY_REGISTERS_96
#undef SY_REGISTERS_128

__device__ __forceinline__ uint32_t PackE4M3(float lo, float hi) {
  uint16_t out;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(hi), "f"(lo));
  return out;
}

}  // namespace switchyard::cuda
