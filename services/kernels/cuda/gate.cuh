// The gate's choice, as router/graph/gate.h has it: from logits to the top-k experts of each row
// and their weights. Equal scores go to the lower id, sums over the chosen run over ids ascending.
// Of the same logits they are those of a CPU, bit for bit.
//
// A warp takes a row: some hundred numbers, so that what counts is how long one row takes. A NaN
// among the logits gives some valid set of distinct experts.
#pragma once

#include "services/kernels/cuda/exp.cuh"
#include "services/kernels/cuda/launch.cuh"
#include "services/kernels/cuda/ptx.cuh"
#include "services/kernels/cuda/tiles.h"

namespace switchyard::cuda {

// Of the same order as their namesakes of ModelSpec.
enum class GateScore : int32_t { kSigmoid, kSoftmax, kSoftmaxAfterTopK };
enum class GroupScore : int32_t { kNone, kMax, kTop2Sum };

inline constexpr int kGateWarps = 4;      // rows of a block
inline constexpr int kMaxExperts = 1024;  // 32 of each lane
inline constexpr int kMaxTopK = 32;

struct GateArgs {
  const float* logits = nullptr;  // [rows, experts], with the gate's own bias
  int32_t rows = 0, experts = 0;
  const float* correction_bias = nullptr;  // [experts], for the choice only; null: none
  GateScore score = GateScore::kSoftmax;
  GroupScore group_score = GroupScore::kNone;
  int32_t groups = 1, topk_groups = 1, top_k = 0;
  bool normalise = false;
  float normalise_eps = 0, scale = 1;
  int32_t* ids = nullptr;    // [rows, top_k], ascending in each row
  float* weights = nullptr;  // [rows, top_k]
};

// A row's place in shared memory.
struct GateRow {
  float *scores, *selection, *groups;
  int32_t* chosen;  // [top_k]

  __device__ GateRow(const GateArgs& args, unsigned char* shared, int warp)
      : scores(reinterpret_cast<float*>(shared) + warp * Floats(args)),
        selection(scores + args.experts),
        groups(selection + args.experts),
        chosen(reinterpret_cast<int32_t*>(groups + args.groups)) {}
  SY_CUDA_BOTH static int Floats(const GateArgs& args) {
    return 2 * args.experts + args.groups + args.top_k;
  }
};

__device__ __forceinline__ float MaxOfWarp(float x) {
  SY_CUDA_UNROLL
  for (int mask = 16; mask >= 1; mask /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, mask));
  return x;
}
__device__ __forceinline__ uint32_t MaxOfWarp(uint32_t x) {
  return __reduce_max_sync(0xffffffffu, x);
}

// Logits become scores, and what is compared beside them.
__device__ __forceinline__ void ScoreExperts(const GateArgs& args, const float* logits, int lane,
                                             const GateRow& row) {
  float max = -INFINITY, sum = 0;
  const bool softmax = args.score == GateScore::kSoftmax;
  if (softmax) {
    for (int e = lane; e < args.experts; e += 32) max = fmaxf(max, logits[e]);
    max = MaxOfWarp(max);
    // In sixteen lanes that fold, as the CPU's; the other sixteen do it too.
    for (int e = lane % 16; e < args.experts; e += 16) sum += Exp(logits[e] - max);
    SY_CUDA_UNROLL
    for (int mask = 8; mask >= 1; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  }
  for (int e = lane; e < args.experts; e += 32) {
    float x = logits[e];
    if (softmax) x = Exp(x - max) / sum;
    if (args.score == GateScore::kSigmoid) x = 1.0f / (1.0f + Exp(-x));
    row.scores[e] = x;
    row.selection[e] = args.correction_bias == nullptr ? x : x + args.correction_bias[e];
  }
}

__device__ __forceinline__ float ScoreOfGroup(GroupScore kind, const float* x, int n) {
  float first = x[0], second = -INFINITY;
  for (int i = 1; i < n; ++i) {
    const float lower = x[i] > first ? first : x[i];
    first = x[i] > first ? x[i] : first;
    second = lower > second ? lower : second;
  }
  return kind == GroupScore::kMax || n == 1 ? first : first + second;
}

// Masks the groups that as many as are kept beat: by score, or by the lower index at the same.
__device__ __forceinline__ void LimitGroups(const GateArgs& args, int lane, const GateRow& row) {
  const int size = args.experts / args.groups;
  const float masked = args.score == GateScore::kSigmoid ? -INFINITY : 0.0f;
  for (int g = lane; g < args.groups; g += 32) {
    row.groups[g] = ScoreOfGroup(args.group_score, row.selection + g * size, size);
  }
  __syncwarp();
  for (int g = lane; g < args.groups; g += 32) {
    const float mine = row.groups[g];
    int better = 0;
    for (int other = 0; other < args.groups; ++other) {
      const float theirs = row.groups[other];
      better += other < g ? theirs >= mine : other > g && theirs > mine;
    }
    if (better < args.topk_groups) continue;
    for (int i = 0; i < size; ++i) row.selection[g * size + i] = masked;
  }
}

// The top_k of the selection into `chosen`, best first. A lane looks after every 32nd expert.
__device__ __forceinline__ void ChooseExperts(const GateArgs& args, int lane, const GateRow& row) {
  uint32_t taken = 0;  // of the lane's
  uint32_t best = 0;
  int best_at = -1;  // -1: of those that are left nothing is known
  for (int k = 0; k < args.top_k; ++k) {
    if (best_at < 0) {
      best_at = args.experts;
      best = 0;
      for (int e = lane, j = 0; e < args.experts; e += 32, ++j) {
        const uint32_t order = OrderOf(row.selection[e]);
        if ((taken >> j & 1u) != 0 || (best_at < args.experts && order <= best)) continue;
        best = order, best_at = e;
      }
    }
    const uint32_t most = MaxOfWarp(best);
    // The lowest id of those that have it; a lane that has none left says 0.
    const bool has = best_at < args.experts && best == most;
    const uint32_t winner = MaxOfWarp(has ? ~static_cast<uint32_t>(best_at) : 0u);
    if (~winner != static_cast<uint32_t>(best_at)) continue;
    row.chosen[k] = best_at;
    taken |= 1u << (best_at / 32);
    best_at = -1;
  }
}

// The sum of x[0, n) in sixteen lanes that fold, after which nobody reads x any more.
__device__ __forceinline__ float FoldOfLanes(const float* x, int n, int lane) {
  float sum = 0;
  for (int k = lane % 16; k < n; k += 16) sum += x[k];
  SY_CUDA_UNROLL
  for (int mask = 8; mask >= 1; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  return sum;
}

// Weights of the chosen, by lanes: one each, ids ascending.
__device__ __forceinline__ void WeighExperts(const GateArgs& args, int lane, int64_t at,
                                             const GateRow& row) {
  const bool of_selection = args.correction_bias == nullptr && args.score == GateScore::kSoftmax;
  const float* const scores = of_selection ? row.selection : row.scores;
  const bool mine = lane < args.top_k;
  const int id = mine ? row.chosen[lane] : 0;
  int place = 0;
  for (int k = 0; k < args.top_k; ++k) place += row.chosen[k] < id;
  const float score = mine ? scores[id] : -INFINITY;
  const bool softmax = args.score == GateScore::kSoftmaxAfterTopK;
  float weight = softmax ? Exp(score - MaxOfWarp(score)) : score;
  float* const ordered = row.groups;  // [top_k], as groups and chosen are done with
  __syncwarp();
  if (mine) ordered[place] = weight;
  __syncwarp();
  if (softmax) {
    weight /= FoldOfLanes(ordered, args.top_k, lane);
    if (mine) ordered[place] = weight;
    __syncwarp();
  }
  if (args.normalise) {
    float sum = 0;
    for (int k = 0; k < args.top_k; ++k) sum += ordered[k];
    weight /= sum + args.normalise_eps;
  }
  if (!mine) return;
  args.ids[at + place] = id;
  args.weights[at + place] = weight * args.scale;
}

template <int kWarps>
__global__ void __launch_bounds__(kWarps * 32) ChooseOfRows(const GateArgs args) {
  SY_CUDA_SHARED(shared);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (r >= args.rows) return;
  const GateRow row(args, shared, warp);
  ScoreExperts(args, args.logits + r * args.experts, lane, row);
  __syncwarp();
  if (args.group_score != GroupScore::kNone && args.topk_groups < args.groups) {
    LimitGroups(args, lane, row);
    __syncwarp();
  }
  ChooseExperts(args, lane, row);
  __syncwarp();
  WeighExperts(args, lane, r * args.top_k, row);
}

// cudaErrorInvalidValue for more experts, or more of them chosen, than the kernel takes.
inline cudaError_t LaunchGate(const GateArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  if (args.experts > kMaxExperts || args.top_k > kMaxTopK || args.top_k > args.experts) {
    return cudaErrorInvalidValue;
  }
  const size_t bytes = sizeof(float) * kGateWarps * static_cast<size_t>(GateRow::Floats(args));
  return Launch(ChooseOfRows<kGateWarps>,
                {static_cast<unsigned>((args.rows + kGateWarps - 1) / kGateWarps)},
                {kGateWarps * 32}, bytes, stream, args);
}

}  // namespace switchyard::cuda
