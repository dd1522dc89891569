// Eight weights of a tile in shared memory as bf16, in registers: exact, but for their scales.
#pragma once

#include "services/kernels/cuda/ptx.cuh"
#include "services/kernels/cuda/tiles.h"

namespace switchyard::cuda {

// Numbers of e4m3 (or, shifted alike, e2m1) lie in the low exponents of bf16: a multiplication by a
// power of two puts them where they belong.
inline constexpr uint32_t kTwoTo120 = 0x7b807b80u;  // of e4m3, whose bias is 7: 127 - 7
inline constexpr uint32_t kTwoTo126 = 0x7e807e80u;  // of e2m1, whose bias is 1

// Two bytes, one in each half of a word.
__device__ __forceinline__ uint32_t E4M3Pair(uint32_t halves) {
  return Mul2((halves & 0x00800080u) << 8 | (halves & 0x007f007fu) << 4, kTwoTo120);
}
__device__ __forceinline__ uint32_t I8Pair(uint32_t halves) {
  // 128 + the low seven bits, less 128 or, where the eighth is set, 256.
  return Sub2((halves & 0x007f007fu) | 0x43004300u, (halves & 0x00800080u) + 0x43004300u);
}
// Two nibbles, likewise.
__device__ __forceinline__ uint32_t I4Pair(uint32_t halves, uint32_t zero) {
  return Sub2((halves & 0x000f000fu) | 0x43004300u, zero);
}
__device__ __forceinline__ uint32_t E2M1Pair(uint32_t halves) {
  return Mul2((halves & 0x00080008u) << 12 | (halves & 0x00070007u) << 6, kTwoTo126);
}

// Bytes 0 and 1 of a word, or 2 and 3, in the halves of another.
__device__ __forceinline__ uint32_t LowBytes(uint32_t word) { return Permute(word, 0, 0x7170); }
__device__ __forceinline__ uint32_t HighBytes(uint32_t word) { return Permute(word, 0, 0x7372); }

// Weights [slab * 32 + t * 8, + 8) of a row of the tile that begins at `tile`.
template <Format kFormat>
__device__ __forceinline__ uint4 LoadWeights(const TileShape& shape, const unsigned char* tile,
                                             int row, int slab, int t, int group) {
  const unsigned char* const at = tile + row * kTileRowBytes;
  uint4 out;
  if constexpr (kFormat == Format::kBf16) {
    out = *reinterpret_cast<const uint4*>(at + SwizzledChunk(row, slab * 4 + t) * 16);
  } else if constexpr (kFormat == Format::kE4M3 || kFormat == Format::kI8) {
    const uint2 raw =
        *reinterpret_cast<const uint2*>(at + SwizzledChunk(row, slab * 2 + t / 2) * 16 + t % 2 * 8);
    const auto pair = [](uint32_t halves) {
      return kFormat == Format::kI8 ? I8Pair(halves) : E4M3Pair(halves);
    };
    out = {pair(LowBytes(raw.x)), pair(HighBytes(raw.x)), pair(LowBytes(raw.y)),
           pair(HighBytes(raw.y))};
  } else {
    const uint32_t raw =
        *reinterpret_cast<const uint32_t*>(at + SwizzledChunk(row, slab) * 16 + t * 4);
    const uint32_t zero = shape.zeros
                              ? *reinterpret_cast<const uint32_t*>(
                                    tile + shape.zeros_offset() +
                                    sizeof(uint32_t) * static_cast<size_t>(group * kTileRows + row))
                              : ZeroWord(8);
    const auto pair = [zero](uint32_t halves) {
      return kFormat == Format::kI4 ? I4Pair(halves, zero) : E2M1Pair(halves);
    };
    // Nibbles ascend from the lowest: a byte has the first of its two below.
    const auto both = [&](uint32_t bytes) { return pair((bytes & 0xfu) | (bytes & 0xf0u) << 12); };
    out = {both(raw), both(raw >> 8), both(raw >> 16), both(raw >> 24)};
  }
  return out;
}

__device__ __forceinline__ float LoadScale(const TileShape& shape, const unsigned char* tile,
                                           int row, int group) {
  const int at = group * shape.scales_a_group() + (shape.group_rows == 1 ? row : row / 8);
  return *reinterpret_cast<const float*>(tile + kTileElementBytes + at * 4);
}

}  // namespace switchyard::cuda
