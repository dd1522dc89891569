// From a row of logits to a token. In order, as vLLM does it: log-probabilities are those of the
// unmodified logits; then banned ids, logit_bias, penalties (repetition over prompt and output,
// presence and frequency over output), temperature, min_p, top_k, top_p (of what top_k left,
// renormalised), and one draw. Temperature 0 takes the largest. Ties go to the lower id.
//
// A token is a function of its task alone, with the same bits on every instruction set: exp is the
// kernels' own, sums have a fixed order, randomness comes from (seed, choice, position).
//
// Thread-safety: one thread at a time (scratch is kept between calls).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "router/sample/sampling_params.h"
#include "router/sample/token_history.h"

namespace switchyard::router {

struct SampleTask {
  std::span<const float> logits;  // [vocab]
  const SamplingParams& params;
  const TokenHistory& history;
  std::span<const int32_t> banned;  // ids that may not come now (min_tokens)
  int choice = 0;
  int64_t position = 0;   // absolute, of the token to be drawn
  int top_logprobs = -1;  // -1: no log-probabilities
};

struct SampledToken {
  int32_t id = 0;
  float logprob = 0;              // where asked for
  std::vector<TokenLogprob> top;  // best first
};

class Sampler {
 public:
  explicit Sampler(int vocab);

  // INTERNAL if a logit is NaN or +inf, or nothing is left to choose from.
  absl::StatusOr<SampledToken> Sample(const SampleTask& task);

  // The log-probability of `id` and of the `top` best, for prompt log-probabilities. INTERNAL as
  // above.
  absl::StatusOr<SampledToken> Score(std::span<const float> logits, int32_t id, int top);

 private:
  // The logits after bans, bias and penalties; `task.logits` itself where there are none.
  std::span<const float> Modified(const SampleTask& task);
  // Draws from the distribution of `logits`, whose largest is at `best`.
  int32_t Draw(std::span<const float> logits, int32_t best, const SampleTask& task);
  int32_t DrawFromAll(double u, float at_least) const;
  int32_t DrawFromBest(const SamplingParams& params, double u, float at_least);
  void AddLogprobs(std::span<const float> logits, int32_t best, int top, SampledToken& token);
  // Fills picked_ with the ids of the k largest values above `floor`, best first.
  void PickLargest(std::span<const float> values, size_t k, float floor);

  std::vector<float> modified_, probabilities_;  // [vocab]
  std::vector<int32_t> picked_;
};

}  // namespace switchyard::router
