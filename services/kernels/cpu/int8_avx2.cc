// Weights of integers with AVX2, and the quantisation of rows for every target that has it.
#include "services/kernels/cpu/targets.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "services/kernels/cpu/target.h"

SY_TARGET_BEGIN("avx2,fma,f16c")
namespace switchyard::kernels {
namespace {
// Each builds on those before it.
// clang-format off
#include "services/kernels/cpu/int8_lanes_avx2.inc"
#include "services/kernels/cpu/int8_formats.inc"
#include "services/kernels/cpu/int8_tiles.inc"
#include "services/kernels/cpu/int8_packed.inc"
#include "services/kernels/cpu/int8_rows.inc"
#include "services/kernels/cpu/int8_outputs.inc"
// clang-format on

// The bits of the largest magnitude of 32 values.
inline uint32_t LargestBits(__m256i a, __m256i b) {
  const __m256i magnitude = _mm256_set1_epi16(0x7fff);
  const __m256i two =
      _mm256_max_epu16(_mm256_and_si256(a, magnitude), _mm256_and_si256(b, magnitude));
  const __m128i one = _mm_max_epu16(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
  // There is an instruction for the least word only.
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(one, _mm_set1_epi16(-1)));
  return 0xffffu - static_cast<uint32_t>(_mm_extract_epi16(least, 0));
}

// Eight values, which are the even or the odd ones of sixteen, rounded to integers.
inline __m256i Rounded(__m256i bits, __m256 inverse) {
  return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(bits), inverse));
}

// Sixteen values as words.
inline __m256i Quantized(__m256i x, __m256 inverse) {
  const __m256i even = Rounded(_mm256_slli_epi32(x, 16), inverse);
  const __m256i odd = Rounded(_mm256_and_si256(x, _mm256_set1_epi32(INT32_C(-0x10000))), inverse);
  return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
}

inline int32_t SumOfWords(__m256i x) {
  const __m256i pairs = _mm256_madd_epi16(x, _mm256_set1_epi16(1));
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

void QuantizeSubBlock(const bf16* x, const QuantizedRow& out) {
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 16));
  const uint32_t largest = LargestBits(a, b);
  if (largest < kSmallestMax || largest >= 0x7f80) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.q), _mm256_setzero_si256());
    *out.nsum = *out.nhalf = 0;
    *out.scale = *out.nmin = largest < 0x7f80 ? 0 : __builtin_nanf("");
    return;
  }
  const float max = ToFloat(bf16{static_cast<uint16_t>(largest)});
  const __m256 inverse = _mm256_set1_ps(127.0f / max);
  const __m256i first = Quantized(a, inverse), second = Quantized(b, inverse);
  const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.q), bytes);
  *out.nhalf = -SumOfWords(first);
  *out.nsum = *out.nhalf - SumOfWords(second);
  *out.scale = max / 127.0f;
  *out.nmin = *out.scale * static_cast<float>(*out.nsum);
}

}  // namespace

void QuantizeAvx2(const bf16* x, int64_t in, const QuantizedRow& out) {
  for (int64_t b = 0; b < in / kSubBlock; ++b) {
    QuantizeSubBlock(x + b * kSubBlock, out.At(b));
  }
}

void MatMulInt8Avx2(const MatMulTask& task, const QuantizedRows& x, int64_t m0, int64_t m1,
                    int64_t n0, int64_t n1, float* scratch) {
  MatMulInt8<RowWalk>(task, x, m0, m1, n0, n1, scratch);
}

}  // namespace switchyard::kernels
SY_TARGET_END
#endif
