// What quantised weights say, value by value, and rows of activations quantised to meet them.
// Internal to services/kernels and its tests.
//
// Weights with scales beside them are laid out as services/tensor/view.h says. Layouts of GGUF's
// blocks: ggml-common.h and ggml-quants.c of https://github.com/ggml-org/ggml. Numbers are
// little-endian; f16 is IEEE binary16.
//
//   Q8_0   f16 d, 32 int8 q                          w = d·q
//   Q4_0   f16 d, 16 bytes                           w = d·(q - 8); byte j: values j and j + 16
//   MXFP4  u8 e, 16 bytes as in Q4_0                 w = 2^(e-128)·e2m1 doubled
//   Q4_K   f16 d, f16 dmin, 12 bytes, 128 bytes      w = d·s·q - dmin·m; s, m of six bits for each
//                                                    32 values; 32 bytes hold the low, then the
//                                                    high nibbles of 64 values
//   Q5_K   f16 d, f16 dmin, 12, 32 high, 128 bytes   the same, with a fifth bit: bit i of byte j is
//                                                    that of value 32i + j
//   Q6_K   128 low, 64 high bytes, 16 int8 s, f16 d  w = d·s·(q - 32), s for each 16 values; each
//                                                    half of 128 values has 64 bytes of nibbles and
//                                                    32 of pairs of bits
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "services/tensor/dtype.h"
#include "services/tensor/view.h"

namespace switchyard::kernels {

inline constexpr int64_t kSubBlock = 32;     // values that share a scale of x
inline constexpr int64_t kSuperBlock = 256;  // values of a K block

// 32 weights in a row: w[i] = d · scale[i / 16] · q[i] - min.
struct SubBlock {
  int8_t q[kSubBlock];
  int scale[2] = {1, 1};
  float d = 0, min = 0;
};

// Sub-block b of a row of a blocked dtype.
void ReadSubBlock(DType dtype, const std::byte* row, int64_t b, SubBlock* out);
// Sub-block b of a stored row of quantised weights whose elements are integers (kI8, kI4, kE2M1) or
// that lie in blocks.
void ReadSubBlock(const WeightView& w, int64_t row, int64_t b, SubBlock* out);
// The same, exact, as float32 (rounded once where a K block needs more than 24 bits).
void SubBlockToFloat(const SubBlock& block, float* out);

// Scale and minimum of sub-block j < 8 of Q4_K and Q5_K: six bits each, of the 12 bytes at p.
struct SixBits {
  uint8_t scale, min;
};
inline SixBits SixBitsAt(const uint8_t* p, int j) {
  if (j < 4) {
    return {static_cast<uint8_t>(p[j] & 63), static_cast<uint8_t>(p[j + 4] & 63)};
  }
  return {static_cast<uint8_t>((p[j + 4] & 15) | (p[j - 4] >> 6) << 4),
          static_cast<uint8_t>((p[j + 4] >> 4) | (p[j] >> 6) << 4)};
}

// Of e2m1, in GGUF's order, doubled.
inline constexpr int8_t kE2M1Doubled[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                            0, -1, -2, -3, -4, -6, -8, -12};
// 2^(e - 128).
inline float E8M0Half(uint8_t e) {
  const uint32_t bits = e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23;
  return std::bit_cast<float>(bits);
}

// The scale of a stored row's columns [g·group_columns, (g + 1)·group_columns), as it stands before
// the integers: half of what it says where those are doubled (kE2M1).
float ScaleAt(const WeightView& w, int64_t row, int64_t g);
// The zero point of the same.
int ZeroAt(const WeightView& w, int64_t row, int64_t g);
// Nibble of output r among eight, in words of kAwq.
inline constexpr int kAwqNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

inline float LoadF16(const std::byte* p) {
  f16 x;
  std::memcpy(&x, p, sizeof(x));
  return ToFloat(x);
}

// One row of x for products with blocked weights. For each 32 values:
//   scale   s = max|x| / 127
//   q       x · (127 / max|x|), rounded to the nearest integer, ties to even
//   nsum    -Σ q, and nhalf that of the first 16
//   nmin    s · nsum
// all in float32. Where max|x| < 2^-100 all are zeros; where x holds a NaN or an infinity, s and
// nmin are NaN and the rest zeros.
struct QuantizedRow {
  int8_t* q;
  float* scale;
  int32_t* nsum;
  int32_t* nhalf;
  float* nmin;

  // The row from its sub-block `piece` on.
  QuantizedRow At(int64_t piece) const {
    return {q + piece * kSubBlock, scale + piece, nsum + piece, nhalf + piece, nmin + piece};
  }
};

// Rows as they lie in scratch: q first, then the rest; every row begins on a multiple of 64 bytes.
struct QuantizedRows {
  std::byte* data = nullptr;
  int64_t in = 0;

  // An odd number of cache lines, so that rows do not contend for the same ones.
  static int64_t RowBytes(int64_t in) { return ((in + in / kSubBlock * 16 + 63) / 64 | 1) * 64; }
  QuantizedRow row(int64_t m) const {
    std::byte* at = data + m * RowBytes(in);
    const int64_t blocks = in / kSubBlock;
    float* floats = reinterpret_cast<float*>(at + in);
    int32_t* integers = reinterpret_cast<int32_t*>(floats + blocks);
    return {reinterpret_cast<int8_t*>(at), floats, integers, integers + blocks,
            floats + 3 * blocks};
  }
};

inline constexpr uint32_t kSmallestMax = 0x0d80;  // bits of 2^-100 in bf16

}  // namespace switchyard::kernels
