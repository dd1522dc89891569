// What services/kernels/cuda/ptx.cuh declares. A product of matrices is summed in float64 and
// rounded once: what a GPU rounds on the way is not part of it.
#pragma once

#include <bit>
#include <cstring>
#include <utility>

#include "tests/support/simt/simt.h"

#define SY_CUDA_UNROLL
#define SY_CUDA_SHARED(name) unsigned char* const name = simt::Shared()

namespace switchyard::cuda {

inline float FromBf16(uint32_t low_half) { return std::bit_cast<float>(low_half << 16); }

inline uint32_t ToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16 | 0x40u) & 0xffffu;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
inline uint32_t Pack2(float lo, float hi) { return ToBf16(hi) << 16 | ToBf16(lo); }
inline uint32_t Sub2(uint32_t a, uint32_t b) {
  return Pack2(FromBf16(a & 0xffffu) - FromBf16(b & 0xffffu),
               FromBf16(a >> 16) - FromBf16(b >> 16));
}
inline uint32_t Mul2(uint32_t a, uint32_t b) {
  return Pack2(FromBf16(a & 0xffffu) * FromBf16(b & 0xffffu),
               FromBf16(a >> 16) * FromBf16(b >> 16));
}

inline uint32_t Permute(uint32_t lo, uint32_t hi, uint32_t pick) {
  const uint64_t both = static_cast<uint64_t>(hi) << 32 | lo;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned from = pick >> (4 * i) & 7u;
    out |= static_cast<uint32_t>(both >> (8 * from) & 0xffu) << (8 * i);
  }
  return out;
}

inline void Mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                uint32_t b1) {
  struct Lane {
    uint32_t a[4], b[2];
  };
  const Lane mine = {{a0, a1, a2, a3}, {b0, b1}};
  Lane all[32];
  simt::Exchange(&mine, sizeof mine, all);
  const auto element = [](uint32_t pair, int k) {
    return static_cast<double>(FromBf16(k % 2 == 0 ? pair & 0xffffu : pair >> 16));
  };
  const auto a = [&](int row, int k) {
    const Lane& lane = all[row % 8 * 4 + k % 8 / 2];
    return element(lane.a[row / 8 + k / 8 * 2], k);
  };
  const auto b = [&](int k, int column) {
    return element(all[column * 4 + k % 8 / 2].b[k / 8], k);
  };
  const auto lane = static_cast<int>(threadIdx.x % 32);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = static_cast<double>(d[i]);
    for (int k = 0; k < 16; ++k) sum += a(row, k) * b(k, column);
    d[i] = static_cast<float>(sum);
  }
}

// Of each lane where its row begins; then row and column of a matrix as `at` says them.
template <typename At>
void LoadMatricesAs(uint32_t (&out)[4], const void* row, At at) {
  const void* rows[32];
  simt::Exchange(&row, sizeof row, rows);
  const unsigned lane = threadIdx.x % 32;
  for (unsigned i = 0; i < 4; ++i) {
    uint32_t pair = 0;
    for (unsigned half = 0; half < 2; ++half) {
      const auto [r, c] = at(lane / 4, lane % 4 * 2 + half);
      uint16_t element;
      std::memcpy(&element, static_cast<const unsigned char*>(rows[i * 8 + r]) + c * 2, 2);
      pair |= static_cast<uint32_t>(element) << 16 * half;
    }
    out[i] = pair;
  }
}
inline void LoadMatrices(uint32_t (&out)[4], const void* row) {
  LoadMatricesAs(out, row, [](unsigned g, unsigned t) { return std::pair(g, t); });
}
inline void LoadTransposed(uint32_t (&out)[4], const void* row) {
  LoadMatricesAs(out, row, [](unsigned g, unsigned t) { return std::pair(t, g); });
}

inline void CopyAsync(void* shared, const void* from, int bytes) {
  simt::CopyAsync(shared, from, bytes);
}
inline void CommitCopies() { simt::CommitCopies(); }
template <int kLeft>
void WaitCopies() {
  simt::WaitCopies(kLeft);
}

}  // namespace switchyard::cuda
