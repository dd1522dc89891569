// What services/kernels/cuda/wgmma.cuh declares. Operands are read where a descriptor says when the
// product is waited for; it is summed in float64 and rounded once a step of k.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>

#include "tests/support/simt/simt.h"

namespace switchyard::cuda {

inline void BarrierInit(uint64_t* barrier, int arrivals) { simt::BarrierInit(barrier, arrivals); }
inline void BarriersAreInit() {}
inline void BarrierArrive(uint64_t* barrier) { simt::BarrierArrive(barrier, 0); }
inline void BarrierArriveAndExpect(uint64_t* barrier, int bytes) {
  simt::BarrierArrive(barrier, bytes);
}
inline void BarrierWait(uint64_t* barrier, int parity) { simt::BarrierWait(barrier, parity); }

inline void CopyBulk(void* shared, const void* from, int bytes, uint64_t* barrier) {
  simt::CopyBulk(shared, from, bytes, barrier);
}
inline void CopyAsync4(void* shared, const void* from, bool inside) {
  simt::CopyAsync(shared, from, inside ? 4 : 0, 4);
}
inline void PublishShared() {}
template <int kRegisters>
void FewerRegisters() {}
template <int kRegisters>
void MoreRegisters() {}

inline uint64_t SwizzledRows(const void* shared) {
  const auto address =
      static_cast<uint64_t>(static_cast<const unsigned char*>(shared) - simt::Shared());
  return (address >> 4 & 0x3fff) | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
}

// The `at`-th of the 32 bytes of row `row` that a descriptor means.
inline const unsigned char* BytesOf(uint64_t matrix, int row, int at) {
  const uint64_t between_eights = (matrix >> 32 & 0x3fff) << 4;
  const uint64_t plain = ((matrix & 0x3fff) << 4) +
                         static_cast<uint64_t>(row / 8) * between_eights +
                         static_cast<uint64_t>(row % 8 * 128 + at);
  return simt::Shared() + (plain ^ (plain >> 7 & 7) << 4);
}

inline double E4M3Value(unsigned code) {
  const int exponent = static_cast<int>(code >> 3 & 15), mantissa = static_cast<int>(code & 7);
  if ((code & 127) == 127) return std::nan("");
  const double value =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 128 ? -value : value;
}

// Row `row` of a matrix for one step of k: 16 of bf16 or 32 of e4m3.
template <int kBytes>
void ReadRow(uint64_t matrix, int row, double (&out)[32 / kBytes]) {
  for (int k = 0; k < 32 / kBytes; ++k) {
    const unsigned char* const at = BytesOf(matrix, row, k * kBytes);
    if constexpr (kBytes == 2) {
      out[k] = static_cast<double>(FromBf16(static_cast<uint32_t>(at[0] | at[1] << 8)));
    } else {
      out[k] = E4M3Value(at[0]);
    }
  }
}

// One thread's registers of D.
template <int kN, int kBytes>
void MultiplyShare(float* d, uint64_t a, uint64_t b, bool add) {
  constexpr int kDepth = 32 / kBytes;
  const auto thread = static_cast<int>(threadIdx.x % 128);
  const int low = thread / 32 * 16 + thread % 32 / 4, t = thread % 4;
  double left[2][kDepth], right[kDepth];
  ReadRow<kBytes>(a, low, left[0]);
  ReadRow<kBytes>(a, low + 8, left[1]);
  for (int j = 0; j < kN / 8; ++j) {
    for (int i = 0; i < 2; ++i) {
      ReadRow<kBytes>(b, j * 8 + t * 2 + i, right);
      for (int half = 0; half < 2; ++half) {
        float& out = d[j * 4 + half * 2 + i];
        double sum = add ? static_cast<double>(out) : 0.0;
        for (int k = 0; k < kDepth; ++k) sum += left[half][k] * right[k];
        out = static_cast<float>(sum);
      }
    }
  }
}

template <int kN, int kBytes>
void DeferProduct(float* d, uint64_t a, uint64_t b, bool add) {
  const uint64_t what = a * 31 + b * 17 + (add ? 1 : 0) + uint64_t{kN} * kBytes;
  simt::Defer(what, [=] { MultiplyShare<kN, kBytes>(d, a, b, add); });
}
template <int kN>
void WgmmaBf16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add) {
  DeferProduct<kN, 2>(d, a, b, add);
}
template <int kN>
void WgmmaE4M3(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add) {
  DeferProduct<kN, 1>(d, a, b, add);
}
inline void WgmmaFence() {}
inline void WgmmaCommit() { simt::CommitDeferred(); }
template <int kLeft>
void WgmmaWait() {
  simt::WaitDeferred(kLeft);
}
template <int kCount>
void Settle(float (&)[kCount]) {}

inline uint32_t ToE4M3(float value) {
  const uint32_t sign = std::signbit(value) ? 0x80u : 0;
  if (std::isnan(value)) return sign | 0x7fu;
  const double size = std::fmin(std::fabs(static_cast<double>(value)), 448.0);
  const int exponent = std::max(size == 0.0 ? -6 : std::ilogb(size), -6);
  // In units of the last bit; rint rounds to even. 16 of them are the next exponent's 8.
  const auto units = static_cast<uint32_t>(std::rint(std::ldexp(size, 3 - exponent)));
  return sign | (static_cast<uint32_t>(exponent + 6) * 8 + units);
}
inline uint32_t PackE4M3(float lo, float hi) { return ToE4M3(hi) << 8 | ToE4M3(lo); }

}  // namespace switchyard::cuda
