// From a gate's choice on the device to runs of pairs by expert, and from the pairs' results back
// to sums of rows: what a frame's lists are made of on the host elsewhere.
#pragma once

#include "services/kernels/cuda/gate.cuh"
#include "services/kernels/cuda/grouped_matmul.cuh"
#include "services/kernels/cuda/launch.cuh"
#include "services/kernels/cuda/ptx.cuh"

namespace switchyard::cuda {

struct RoutedPairs {
  const int32_t* ids = nullptr;    // [rows, top_k], each in [0, experts)
  const float* weights = nullptr;  // [rows, top_k]
  int32_t rows = 0, top_k = 0, experts = 0;
  int32_t run_rows = 8;   // that a run has at most
  int32_t most_runs = 0;  // room for them: MostRuns
  // Made here:
  int32_t* gather = nullptr;     // [pairs]: the row of a place; places of an expert stand together
  int32_t* place = nullptr;      // [rows, top_k]: of a pair
  RowRun* runs = nullptr;        // [most_runs]: by expert, then those of no rows
  int32_t* run_count = nullptr;  // [1]
};

constexpr int64_t MostRuns(int64_t pairs, int64_t experts, int64_t run_rows) {
  return (pairs < experts ? pairs : experts) + pairs / run_rows;
}

// One block, a thread for each expert: it finds its pairs in their order, so that places are always
// the same.
static __global__ void __launch_bounds__(kMaxExperts) GroupPairs(const RoutedPairs args) {
  SY_CUDA_SHARED(shared);
  int32_t* const counts = reinterpret_cast<int32_t*>(shared);
  const int32_t expert = static_cast<int32_t>(threadIdx.x), pairs = args.rows * args.top_k;
  int32_t count = 0;
  for (int32_t p = 0; p < pairs; ++p) count += args.ids[p] == expert;
  counts[expert] = count;
  __syncthreads();
  int32_t first = 0, run = 0, all_runs = 0;
  for (int32_t e = 0; e < args.experts; ++e) {
    const int32_t of_expert = (counts[e] + args.run_rows - 1) / args.run_rows;
    all_runs += of_expert;
    if (e >= expert) continue;
    first += counts[e];
    run += of_expert;
  }
  if (expert < args.experts) {
    for (int32_t i = 0; i < count; i += args.run_rows, ++run) {
      const int32_t left = count - i;
      args.runs[run] = {expert, first + i, left < args.run_rows ? left : args.run_rows};
    }
    for (int32_t p = 0, at = first; p < pairs; ++p) {
      if (args.ids[p] != expert) continue;
      args.gather[at] = p / args.top_k;
      args.place[p] = at++;
    }
  }
  for (int32_t r = all_runs + expert; r < args.most_runs; r += static_cast<int32_t>(blockDim.x)) {
    args.runs[r] = {0, 0, 0};
  }
  if (expert == 0) *args.run_count = all_runs;
}

// out[r] = the row's groups added ascending, each a fused chain over its pairs from zero, rounded
// to bf16: as router/dispatch/combine.h has it. y [pairs, hidden] by place. grid: (rows, columns /
// (2 · kRowSumThreads) rounded up)
inline constexpr int kRowSumThreads = 256;

static __global__ void __launch_bounds__(kRowSumThreads)
    SumPairsOfRows(const RoutedPairs args, const float* y, int32_t hidden, int32_t group_experts,
                   float* out) {
  const int column =
      (static_cast<int>(blockIdx.y) * kRowSumThreads + static_cast<int>(threadIdx.x)) * 2;
  if (column >= hidden) return;
  const int64_t row = blockIdx.x;
  const auto rounded = [](float x, float y2) -> float2 {
    const uint32_t bits = Pack2(x, y2);
    return {FromBf16(bits & 0xffffu), FromBf16(bits >> 16)};
  };
  float2 sum = {0, 0}, chain = {0, 0};
  for (int32_t k = 0; k < args.top_k; ++k) {
    const int64_t pair = row * args.top_k + k;
    const int32_t group = args.ids[pair] / group_experts;
    const float2 v = *reinterpret_cast<const float2*>(
        y + static_cast<int64_t>(args.place[pair]) * hidden + column);
    const float w = args.weights[pair];
    chain = {fmaf(w, v.x, chain.x), fmaf(w, v.y, chain.y)};
    if (k + 1 < args.top_k && args.ids[pair + 1] / group_experts == group) continue;
    const float2 of_group = rounded(chain.x, chain.y);
    sum = {sum.x + of_group.x, sum.y + of_group.y};
    chain = {0, 0};
  }
  *reinterpret_cast<float2*>(out + row * hidden + column) = sum;
}

// ---- host ----

inline cudaError_t LaunchGroupPairs(const RoutedPairs& args, cudaStream_t stream) {
  const auto threads = static_cast<unsigned>((args.experts + 31) / 32 * 32);
  return Launch(&GroupPairs, dim3(1), dim3(threads), threads * sizeof(int32_t), stream, args);
}

inline cudaError_t LaunchSumPairsOfRows(const RoutedPairs& args, const float* y, int32_t hidden,
                                        int32_t group_experts, float* out, cudaStream_t stream) {
  constexpr int kColumns = 2 * kRowSumThreads;
  const dim3 grid = {static_cast<unsigned>(args.rows),
                     static_cast<unsigned>((hidden + kColumns - 1) / kColumns)};
  return Launch(&SumPairsOfRows, grid, dim3(kRowSumThreads), 0, stream, args, y, hidden,
                group_experts, out);
}

}  // namespace switchyard::cuda
