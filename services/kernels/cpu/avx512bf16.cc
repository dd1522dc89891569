// The class avx512bf16: bf16 rows with bf16 weights by vdpbf16ps. Everything else of the class is
// the AVX-512 of the fma class.
#include "services/kernels/cpu/targets.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "services/kernels/cpu/target.h"
#include "services/kernels/scalar_math.h"

SY_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")
namespace switchyard::kernels {
namespace {
#include "services/kernels/cpu/lanes_avx512.inc"
#include "services/kernels/cpu/partial.inc"

inline __m512bh LoadWide(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
inline __m512bh LoadWideFirst(const bf16* p, int64_t n) {
  return (__m512bh)_mm512_maskz_loadu_epi16((1u << n) - 1u, p);
}

// As dot.inc's, with pairs of k in each lane.
template <int M, int N>
SY_INLINE void DotTile(const bf16* const* x, const bf16* w, int64_t stride, int64_t in, V* acc) {
  SY_UNROLL
  for (int i = 0; i < M * N; ++i) acc[i] = Zero();
  int64_t k = 0;
  for (; k + 32 <= in; k += 32) {
    __m512bh rows[M];
    SY_UNROLL
    for (int m = 0; m < M; ++m) rows[m] = LoadWide(x[m] + k);
    SY_UNROLL
    for (int n = 0; n < N; ++n) {
      const __m512bh weights = LoadWide(w + n * stride + k);
      SY_UNROLL
      for (int m = 0; m < M; ++m) {
        acc[m * N + n].v = _mm512_dpbf16_ps(acc[m * N + n].v, rows[m], weights);
      }
    }
  }
  if (k < in) {
    SY_UNROLL
    for (int m = 0; m < M; ++m) {
      const __m512bh row = LoadWideFirst(x[m] + k, in - k);
      SY_UNROLL
      for (int n = 0; n < N; ++n) {
        acc[m * N + n].v =
            _mm512_dpbf16_ps(acc[m * N + n].v, row, LoadWideFirst(w + n * stride + k, in - k));
      }
    }
  }
}
#include "services/kernels/cpu/matmul.inc"

}  // namespace

void MatMulAvx512Bf16(const MatMulTask& task, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                      float* scratch) {
  if (!IsBF16Dot(task)) return kAvx512Ops.mat_mul(task, m0, m1, n0, n1, scratch);
  RunRows<bf16, bf16>(task, m0, m1, n0, n1, nullptr);
}

}  // namespace switchyard::kernels
SY_TARGET_END
#endif
