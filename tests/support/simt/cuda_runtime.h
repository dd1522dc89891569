// The part of CUDA's runtime that services/kernels/cuda uses, on a CPU: see simt.h. Stands in the
// place of the toolkit's header of this name where the sources are compiled for tests.
#pragma once

#include <algorithm>
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
#define threadIdx (simt::ThreadIdx())
#define blockIdx (simt::BlockIdx())
#define blockDim (simt::BlockDim())
#define gridDim (simt::GridDim())

inline void __syncthreads() { simt::SyncThreads(); }

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};

using std::max;
using std::min;
