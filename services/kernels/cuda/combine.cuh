// What a frame asks for, out of the pairs' results: sums of pairs by weight, and single pairs.
#pragma once

#include "services/kernels/cuda/ptx.cuh"

namespace switchyard::cuda {

struct CombineArgs {
  const float* y = nullptr;  // [pairs, hidden]
  int32_t hidden = 0;        // even
  const int32_t* sum_first = nullptr;
  const int32_t* entry_pair = nullptr;
  const float* entry_weight = nullptr;
  const uint64_t* sum_at = nullptr;
  const int32_t* copy_pair = nullptr;
  const uint64_t* copy_at = nullptr;
  unsigned char* out = nullptr;
};

inline constexpr int kCombineThreads = 256;
inline constexpr int kCombineColumns = kCombineThreads * 2;

// A sum in bf16: one fused chain over its entries in their order, from zero.
// grid: (sums, columns / kCombineColumns rounded up)
static __global__ void __launch_bounds__(kCombineThreads) SumPairs(const CombineArgs args) {
  const int column =
      static_cast<int>(blockIdx.y) * kCombineColumns + static_cast<int>(threadIdx.x) * 2;
  if (column >= args.hidden) return;
  float a = 0, b = 0;
  const int last = args.sum_first[blockIdx.x + 1];
  for (int e = args.sum_first[blockIdx.x]; e < last; ++e) {
    const float2 y = *reinterpret_cast<const float2*>(
        args.y + static_cast<int64_t>(args.entry_pair[e]) * args.hidden + column);
    const float w = args.entry_weight[e];
    a = fmaf(w, y.x, a);
    b = fmaf(w, y.y, b);
  }
  *reinterpret_cast<uint32_t*>(args.out + args.sum_at[blockIdx.x] + column * 2) = Pack2(a, b);
}

// A pair as it is, in float32. grid: (copies, as above)
static __global__ void __launch_bounds__(kCombineThreads) CopyPairs(const CombineArgs args) {
  const int column =
      static_cast<int>(blockIdx.y) * kCombineColumns + static_cast<int>(threadIdx.x) * 2;
  if (column >= args.hidden) return;
  const int pair = args.copy_pair[blockIdx.x];
  const float2 zero = {0, 0};
  *reinterpret_cast<float2*>(args.out + args.copy_at[blockIdx.x] + column * 4) =
      pair < 0 ? zero
               : *reinterpret_cast<const float2*>(
                     args.y + static_cast<int64_t>(pair) * args.hidden + column);
}

}  // namespace switchyard::cuda
