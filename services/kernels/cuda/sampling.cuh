// From rows of logits to tokens, as router/sample/sampler.h has it: temperature 0 takes the
// largest, ties go to the lower id; otherwise min_p, top_k and top_p cut the distribution, and one
// draw, a function of (seed, choice, position), walks what is left: by ids where neither top_k nor
// top_p cuts, else from the best to the worst.
//
// Nothing is sorted. Probabilities count as whole numbers, of which the largest has 2^42, so that
// their sums are exact in any order; and a place in the order of the best is found by halving the
// range of logits, over the few that can be meant. What comes of it differs from a CPU's choice
// where the number drawn is within 2^-42 or so of the border of two tokens. What limits it is
// reading a row of some hundred thousand logits, two to four times, by one block.
#pragma once

#include "services/kernels/cuda/exp.cuh"
#include "services/kernels/cuda/launch.cuh"
#include "services/kernels/cuda/ptx.cuh"

namespace switchyard::cuda {

inline constexpr int kSampleThreads = 1024;
inline constexpr int kMaxVocab = 1 << 20;  // sums of masses take 62 bits

struct SampleTask {
  float temperature = 0;  // 0: the largest
  int32_t top_k = 0;      // 0: off
  float top_p = 1, min_p = 0;
  uint64_t seed = 0;
  int64_t position = 0;
  int32_t choice = 0;
};

struct Candidate {
  int32_t id;
  float logit;
};

struct SampleArgs {
  const float* logits = nullptr;  // [rows, stride]
  int64_t stride = 0;
  int32_t rows = 0, vocab = 0;
  const SampleTask* tasks = nullptr;  // [rows]
  Candidate* scratch = nullptr;       // [rows, vocab]; null: no task has top_k or top_p
  int32_t* tokens = nullptr;          // [rows]; -1: a logit is NaN, or the largest is infinite
};

// Philox4x32-10, see router/sample/random.h.
__device__ __forceinline__ double Uniform(uint64_t seed, int32_t choice, int64_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                   static_cast<uint32_t>(choice), 0};
  auto low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    c[0] = static_cast<uint32_t>(b >> 32) ^ c[1] ^ low, c[1] = static_cast<uint32_t>(b);
    c[2] = static_cast<uint32_t>(a >> 32) ^ c[3] ^ high, c[3] = static_cast<uint32_t>(a);
    low += 0x9E3779B9u, high += 0xBB67AE85u;
  }
  return static_cast<double>((uint64_t{c[0]} << 32 | c[1]) >> 11) * 0x1p-53;
}

// One row, by all threads of a block.
template <int kThreads>
struct RowSampler {
  static constexpr int kWarps = kThreads / 32;

  const float* logits;
  int vocab;
  SampleTask task;
  unsigned char* shared;  // [kWarps] of 8 bytes, twice
  uint32_t best = 0;      // the largest logit's order
  int32_t best_id = 0;
  float top = 0;  // the largest logit

  __device__ __forceinline__ int Thread() const { return static_cast<int>(threadIdx.x); }

  __device__ __forceinline__ uint64_t SumOfWarp(uint64_t x) const {
    SY_CUDA_UNROLL
    for (int mask = 16; mask >= 1; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
    return x;
  }
  // Sums, and largest, of the block's threads.
  __device__ __forceinline__ uint64_t Sum(uint64_t x) const {
    x = SumOfWarp(x);
    auto* const sums = reinterpret_cast<uint64_t*>(shared);
    if (Thread() % 32 == 0) sums[Thread() / 32] = x;
    __syncthreads();
    x = 0;
    for (int w = 0; w < kWarps; ++w) x += sums[w];
    __syncthreads();  // until all have read
    return x;
  }
  __device__ __forceinline__ uint32_t Max(uint32_t x) const {
    auto* const values = reinterpret_cast<uint32_t*>(shared);
    x = __reduce_max_sync(0xffffffffu, x);
    if (Thread() % 32 == 0) values[Thread() / 32] = x;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) x = max(x, values[w]);
    __syncthreads();
    return x;
  }
  template <typename Measure>
  __device__ __forceinline__ uint64_t SumOver(int begin, int end, Measure measure) const {
    uint64_t sum = 0;
    for (int i = begin + Thread(); i < end; i += kThreads) sum += measure(i);
    return Sum(sum);
  }
  // The largest x of [low, high] with sum_from(x) >= wanted, which low has; sums fall with x.
  template <typename SumFrom>
  __device__ __forceinline__ uint32_t Largest(uint32_t low, uint32_t high, uint64_t wanted,
                                              SumFrom sum_from) const {
    while (low < high) {
      const uint32_t middle = high - (high - low) / 2;
      if (sum_from(middle) >= wanted) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }

  // What a token weighs: nothing where min_p leaves it out.
  __device__ __forceinline__ uint64_t Mass(float logit) const {
    const float weight = Exp((logit - top) / task.temperature);
    return weight < task.min_p ? 0 : static_cast<uint64_t>(weight * 0x1p42f);
  }

  // Finds the largest; the thread's own is `mine`. False where there is none to choose.
  __device__ __forceinline__ bool FindBest(uint32_t& mine) {
    uint32_t nan = 0;
    int32_t id = 0;
    mine = 0;
    for (int i = Thread(); i < vocab; i += kThreads) {
      const uint32_t order = OrderOf(logits[i]);
      if (order == 0) nan = 1;
      if (order > mine) mine = order, id = i;
    }
    best = Max(mine);
    best_id = static_cast<int32_t>(~Max(mine == best ? ~static_cast<uint32_t>(id) : 0u));
    if (Max(nan) != 0) return false;
    top = logits[best_id];
    return top - top == 0;
  }

  __device__ __forceinline__ uint64_t Target(uint64_t total) const {
    const double u = Uniform(task.seed, task.choice, task.position);
    const auto target = static_cast<uint64_t>(u * static_cast<double>(total));
    return target < total ? target : total - 1;
  }

  // The token where the sum over ids ascending passes the target. Warps take ranges of ids, so that
  // only one of these is looked through again.
  __device__ __forceinline__ int32_t DrawFromAll() const {
    const int range = (vocab + kWarps - 1) / kWarps, warp = Thread() / 32;
    auto* const sums = reinterpret_cast<uint64_t*>(shared) + kWarps;  // beside those of Sum
    uint64_t mine = 0;
    for (int i = warp * range + Thread() % 32; i < min((warp + 1) * range, vocab); i += 32) {
      mine += Mass(logits[i]);
    }
    mine = SumOfWarp(mine);
    if (Thread() % 32 == 0) sums[warp] = mine;
    __syncthreads();
    uint64_t total = 0;
    for (int w = 0; w < kWarps; ++w) total += sums[w];
    uint64_t target = Target(total);
    int w = 0;
    while (target >= sums[w]) target -= sums[w++];
    const int begin = w * range, end = min(begin + range, vocab);
    const uint64_t left = sums[w] - target;  // what begins at the token, at least
    return static_cast<int32_t>(Largest(
        static_cast<uint32_t>(begin), static_cast<uint32_t>(end - 1), left, [&](uint32_t from) {
          return SumOver(static_cast<int>(from), end, [&](int i) { return Mass(logits[i]); });
        }));
  }

  // Those that may be among the chosen into `out`, ids ascending; returns how many. `mine` is the
  // thread's largest, `total` what all weigh (where top_k is off).
  __device__ __forceinline__ int Collect(uint32_t mine, double total, Candidate* out) const {
    uint32_t least = 0;
    uint64_t light = 1;
    if (task.top_k > 0) {
      // Each of these many threads has one that is as large.
      least = Largest(0, best, min(static_cast<uint64_t>(task.top_k), uint64_t{kThreads}),
                      [&](uint32_t x) { return Sum(mine >= x ? 1 : 0); });
      if (task.top_k > kThreads) least = 0;
    } else {
      // All below this together weigh no more than what top_p leaves out.
      const double out_of_p = (1 - static_cast<double>(task.top_p)) * total / vocab;
      light = max(light, static_cast<uint64_t>(out_of_p * (1 - 1e-6)));
    }
    const auto wanted = [&](float x) { return OrderOf(x) >= least && Mass(x) >= light; };
    const int range = (vocab + kWarps - 1) / kWarps, warp = Thread() / 32, lane = Thread() % 32;
    const int begin = warp * range, end = min(begin + range, vocab);
    const auto for_wanted = [&](auto&& body) {  // body(id, logit, whether, of which lanes)
      for (int i = begin; i < end; i += 32) {
        const float x = i + lane < end ? logits[i + lane] : -INFINITY;
        const bool is = i + lane < end && wanted(x);
        body(i + lane, x, is, __ballot_sync(0xffffffffu, is));
      }
    };
    uint32_t count = 0;
    for_wanted(
        [&](int, float, bool, uint32_t lanes) { count += static_cast<uint32_t>(__popc(lanes)); });
    auto* const counts = reinterpret_cast<uint32_t*>(shared);
    if (lane == 0) counts[warp] = count;
    __syncthreads();
    uint32_t at = 0, all = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) at += counts[w];
      all += counts[w];
    }
    for_wanted([&](int id, float x, bool is, uint32_t lanes) {
      if (is) out[at + static_cast<uint32_t>(__popc(lanes & ((1u << lane) - 1)))] = {id, x};
      at += static_cast<uint32_t>(__popc(lanes));
    });
    __syncthreads();
    return static_cast<int>(all);
  }

  // A place in the order of the best: `before` are all that are larger than the logit of `order`,
  // of which each weighs `mass`; of these come `ties`.
  struct Cut {
    uint32_t order;
    uint64_t before, mass, ties;
    __device__ uint64_t Total() const { return before + ties * mass; }
  };

  __device__ __forceinline__ int32_t DrawFromBest(uint32_t mine, Candidate* list) const {
    double total = 0;
    if (task.top_k == 0) {
      total = static_cast<double>(SumOver(0, vocab, [&](int i) { return Mass(logits[i]); }));
    }
    const int n = Collect(mine, total, list);
    const auto order = [&](int i) { return OrderOf(list[i].logit); };
    const auto count_from = [&](uint32_t x) {
      return SumOver(0, n, [&](int i) { return uint64_t{order(i) >= x}; });
    };
    const auto mass_from = [&](uint32_t x) {
      return SumOver(0, n, [&](int i) { return order(i) >= x ? Mass(list[i].logit) : 0; });
    };
    // The cut at the order where `sum_from` reaches `wanted`, with all that are equal.
    const auto cut_at = [&](uint64_t wanted, auto&& sum_from) {
      const uint32_t at = Largest(0, best, wanted, sum_from);
      const uint64_t ties = SumOver(0, n, [&](int i) { return uint64_t{order(i) == at}; });
      const uint64_t from = mass_from(at), before = at == best ? 0 : mass_from(at + 1);
      return Cut{at, before, (from - before) / ties, ties};
    };
    Cut cut = {0, 0, 0, 0};
    if (task.top_k > 0) {
      const uint64_t k = min(static_cast<uint64_t>(task.top_k), static_cast<uint64_t>(n));
      cut = cut_at(k, count_from);
      cut.ties -= count_from(cut.order) - k;
      total = static_cast<double>(cut.Total());
    }
    if (task.top_p < 1) {
      const double enough = static_cast<double>(task.top_p) * total;
      uint64_t wanted = static_cast<uint64_t>(enough);
      if (static_cast<double>(wanted) < enough || wanted == 0) ++wanted;
      wanted = min(wanted, task.top_k > 0 ? cut.Total() : mass_from(0));
      cut = cut_at(wanted, mass_from);
      cut.ties = (wanted - cut.before + cut.mass - 1) / cut.mass;
    }
    const uint64_t target = Target(cut.Total());
    const Cut drawn = cut_at(target + 1, mass_from);
    const uint64_t index = (target - drawn.before) / drawn.mass;  // among its equals
    const auto place =
        Largest(0, static_cast<uint32_t>(n - 1), drawn.ties - index, [&](uint32_t from) {
          return SumOver(static_cast<int>(from), n,
                         [&](int i) { return uint64_t{order(i) == drawn.order}; });
        });
    return list[place].id;
  }
};

// grid: rows.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) SampleRows(const SampleArgs args) {
  SY_CUDA_SHARED(shared);
  const int64_t row = blockIdx.x;
  RowSampler<kThreads> sampler{args.logits + row * args.stride, args.vocab, args.tasks[row],
                               shared};
  uint32_t mine = 0;
  int32_t token = -1;
  if (sampler.FindBest(mine)) {
    token = sampler.best_id;
    if (sampler.task.temperature > 0) {
      const bool cuts = sampler.task.top_k > 0 || sampler.task.top_p < 1;
      token = cuts ? sampler.DrawFromBest(mine, args.scratch + row * args.vocab)
                   : sampler.DrawFromAll();
    }
  }
  if (threadIdx.x == 0) args.tokens[row] = token;
}

// What happens to a logit before it is sampled, in this order; each (row, id) at most once.
struct LogitChange {
  int32_t row = 0, id = 0;
  float bias = 0;                     // -infinity where the id is banned
  float repetition = 1;               // of positive logits the divisor, of others the factor
  float frequency = 0, presence = 0;  // subtracted
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    ChangeLogits(float* logits, int64_t stride, const LogitChange* changes, int32_t count) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= count) return;
  const LogitChange change = changes[i];
  float& x = logits[change.row * stride + change.id];
  const float biased = x + change.bias;
  const float scaled =
      biased > 0 ? biased / change.repetition : __fmul_rn(biased, change.repetition);
  x = scaled - change.frequency - change.presence;
}

// cudaErrorInvalidValue for a vocabulary that is too large. kThreads decides speed alone.
template <int kThreads = kSampleThreads>
cudaError_t LaunchSampling(const SampleArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  if (args.vocab < 1 || args.vocab > kMaxVocab) return cudaErrorInvalidValue;
  return Launch(SampleRows<kThreads>, {static_cast<unsigned>(args.rows)}, {kThreads},
                2 * kThreads / 32 * sizeof(uint64_t), stream, args);
}
inline cudaError_t LaunchChangeLogits(float* logits, int64_t stride, const LogitChange* changes,
                                      int32_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  constexpr int kThreads = 128;
  return Launch(ChangeLogits<kThreads>, {static_cast<unsigned>((count + kThreads - 1) / kThreads)},
                {kThreads}, 0, stream, logits, stride, changes, count);
}

}  // namespace switchyard::cuda
