#include "router/sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "router/sample/random.h"
#include "services/base/check.h"
#include "services/base/status.h"
#include "services/kernels/kernels.h"

namespace switchyard::router {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// ln(x) of a positive normal number, within a few ulp: the C library's own may choose its
// instructions by CPU. x = m·2^e with m around 1, ln(m) = 2·atanh((m - 1) / (m + 1)).
double Log(double x) {
  int exponent = 0;
  double m = std::frexp(x, &exponent);
  if (m < 0.70710678118654752) m *= 2, --exponent;
  const double s = (m - 1) / (m + 1), s2 = s * s;
  double series = 0;
  for (int k = 23; k >= 1; k -= 2) series = series * s2 + 1.0 / k;
  return exponent * 0.69314718055994530942 + 2 * s * series;
}

// The index of the largest, the first of equals. Vocabularies are long: the maximum is found in
// lanes that the compiler makes vectors of, and its place afterwards.
absl::StatusOr<int32_t> Largest(std::span<const float> logits) {
  constexpr size_t kLanes = 16;
  float lanes[kLanes];
  uint32_t nans[kLanes] = {};
  std::fill(lanes, lanes + kLanes, -kInf);
  const size_t whole = logits.size() / kLanes * kLanes;
  const float* x = logits.data();
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) {
      lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
      nans[l] |= x[i + l] != x[i + l] ? 1u : 0u;
    }
  }
  for (size_t i = whole; i < logits.size(); ++i) {
    lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
    nans[0] |= x[i] != x[i] ? 1u : 0u;
  }
  if (std::find(nans, nans + kLanes, 1u) != nans + kLanes) return Internal("a logit is NaN");
  const float best = *std::max_element(lanes, lanes + kLanes);
  if (best == -kInf) return Internal("no token is left to choose from");
  const auto at = static_cast<int32_t>(std::find(x, x + logits.size(), best) - x);
  if (best == kInf) return Internal("the logit of token {} is infinite", at);
  return at;
}

}  // namespace

Sampler::Sampler(int vocab) : modified_(vocab), probabilities_(vocab) {}

std::span<const float> Sampler::Modified(const SampleTask& task) {
  const SamplingParams& params = task.params;
  if (task.banned.empty() && params.logit_bias.empty() && task.history.entries().empty()) {
    return task.logits;
  }
  std::copy(task.logits.begin(), task.logits.end(), modified_.begin());
  for (int32_t id : task.banned) modified_[id] = -kInf;
  for (const auto& [id, bias] : params.logit_bias) modified_[id] += bias;
  for (const TokenHistory::Entry& seen : task.history.entries()) {
    float& x = modified_[seen.id];
    x = x > 0 ? x / params.repetition_penalty : x * params.repetition_penalty;
    if (seen.in_output > 0) {
      x -= params.frequency_penalty * static_cast<float>(seen.in_output);
      x -= params.presence_penalty;
    }
  }
  return modified_;
}

absl::StatusOr<SampledToken> Sampler::Sample(const SampleTask& task) {
  SY_CHECK(task.logits.size() == probabilities_.size());
  const std::span<const float> logits = Modified(task);
  SY_ASSIGN_OR_RETURN(const int32_t best, Largest(logits));
  SampledToken token;
  token.id = task.params.temperature > 0 ? Draw(logits, best, task) : best;
  if (task.top_logprobs >= 0) {
    // Modified logits may have another maximum.
    SY_ASSIGN_OR_RETURN(const int32_t first, Largest(task.logits));
    AddLogprobs(task.logits, first, task.top_logprobs, token);
  }
  return token;
}

absl::StatusOr<SampledToken> Sampler::Score(std::span<const float> logits, int32_t id, int top) {
  SY_CHECK(logits.size() == probabilities_.size());
  SY_ASSIGN_OR_RETURN(const int32_t best, Largest(logits));
  SampledToken token;
  token.id = id;
  AddLogprobs(logits, best, top, token);
  return token;
}

int32_t Sampler::Draw(std::span<const float> logits, int32_t best, const SampleTask& task) {
  const float top = logits[best], temperature = task.params.temperature;
  for (size_t i = 0; i < logits.size(); ++i) {
    probabilities_[i] = (logits[i] - top) / temperature;
  }
  kernels::Softmax(probabilities_.data(), static_cast<int64_t>(probabilities_.size()));
  const double u = Uniform(task.params.seed, task.choice, task.position);
  const float at_least = task.params.min_p * probabilities_[best];
  const bool cut = task.params.top_k > 0 || task.params.top_p < 1;
  return cut ? DrawFromBest(task.params, u, at_least) : DrawFromAll(u, at_least);
}

int32_t Sampler::DrawFromAll(double u, float at_least) const {
  double total = 0;
  for (float p : probabilities_) total += p >= at_least ? p : 0.0f;
  const double target = u * total;
  double sum = 0;
  int32_t last = 0;
  for (size_t i = 0; i < probabilities_.size(); ++i) {
    const float p = probabilities_[i];
    if (p < at_least || p == 0) continue;
    sum += p;
    last = static_cast<int32_t>(i);
    if (sum > target) break;
  }
  return last;
}

int32_t Sampler::DrawFromBest(const SamplingParams& params, double u, float at_least) {
  // The largest value that falls, so that what is picked lies above it.
  float floor = std::nextafterf(at_least, -1.0f);
  double total = 0;
  size_t k = probabilities_.size();
  if (params.top_k > 0) {
    k = std::min(k, static_cast<size_t>(params.top_k));
  } else {
    for (float p : probabilities_) total += p >= at_least ? p : 0.0f;
    // All below this together weigh no more than what top_p leaves out: most need no sorting.
    const double light = (1 - static_cast<double>(params.top_p)) * total / k;
    floor = std::max(floor, static_cast<float>(light * (1 - 1e-6)));
  }
  PickLargest(probabilities_, k, std::max(floor, 0.0f));
  if (params.top_k > 0) {
    for (int32_t id : picked_) total += probabilities_[id];
  }
  const double enough = static_cast<double>(params.top_p) * total;
  double kept = 0;
  size_t count = 0;
  while (count < picked_.size() && (count == 0 || kept < enough)) {
    kept += probabilities_[picked_[count++]];
  }
  const double target = u * kept;
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    sum += probabilities_[picked_[i]];
    if (sum > target) return picked_[i];
  }
  return picked_[count - 1];
}

void Sampler::PickLargest(std::span<const float> values, size_t k, float floor) {
  const auto better = [&](int32_t a, int32_t b) {
    return values[a] > values[b] || (values[a] == values[b] && a < b);
  };
  picked_.clear();
  for (size_t i = 0; k > 0 && i < values.size(); ++i) {
    if (!(values[i] > floor)) continue;
    picked_.push_back(static_cast<int32_t>(i));
    if (picked_.size() < 2 * k) continue;
    // Halve: what comes later must beat the k-th so far, as equals lose by their id.
    std::nth_element(picked_.begin(), picked_.begin() + (k - 1), picked_.end(), better);
    picked_.resize(k);
    floor = values[picked_[k - 1]];
  }
  std::sort(picked_.begin(), picked_.end(), better);
  if (picked_.size() > k) picked_.resize(k);
}

void Sampler::AddLogprobs(std::span<const float> logits, int32_t best, int top,
                          SampledToken& token) {
  std::copy(logits.begin(), logits.end(), probabilities_.begin());
  kernels::Softmax(probabilities_.data(), static_cast<int64_t>(probabilities_.size()));
  // exp(max - max) is 1, so the best probability is 1 / sum.
  const double log_sum = logits[best] - Log(probabilities_[best]);
  const auto logprob = [&](int32_t id) { return static_cast<float>(logits[id] - log_sum); };
  token.logprob = logprob(token.id);
  if (top <= 0) return;
  PickLargest(logits, top, -kInf);
  for (int32_t id : picked_) token.top.push_back({.id = id, .logprob = logprob(id)});
}

}  // namespace switchyard::router
