// The part of CUDA's runtime that services/kernels/cuda uses, on a CPU: see simt.h. Stands in the
// place of the toolkit's header of this name where the sources are compiled for tests.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "tests/support/simt/cudart.h"
#include "tests/support/simt/simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __grid_constant__

using dim3 = simt::Dim3;
inline simt::Dim3& threadIdx = simt::ThreadIdx();
inline simt::Dim3& blockIdx = simt::BlockIdx();
inline simt::Dim3& blockDim = simt::BlockDim();
inline simt::Dim3& gridDim = simt::GridDim();

inline void __syncthreads() { simt::SyncThreads(); }

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }

inline void __syncwarp() {
  unsigned char mine = 0, all[32];
  simt::Exchange(&mine, sizeof mine, all);
}
inline unsigned __reduce_max_sync(unsigned, unsigned x) {
  unsigned all[32];
  simt::Exchange(&x, sizeof x, all);
  return *std::max_element(all, all + 32);
}

template <typename T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  T all[32];
  simt::Exchange(&x, sizeof x, all);
  return all[threadIdx.x % 32 ^ static_cast<unsigned>(mask)];
}
inline unsigned __ballot_sync(unsigned, bool x) {
  bool all[32];
  simt::Exchange(&x, sizeof x, all);
  unsigned lanes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) lanes |= static_cast<unsigned>(all[lane]) << lane;
  return lanes;
}
inline int __popc(unsigned x) { return std::popcount(x); }

using std::max;
using std::min;
