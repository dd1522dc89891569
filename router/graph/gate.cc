#include "router/graph/gate.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "services/base/check.h"
#include "services/kernels/kernels.h"

namespace switchyard::router {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The two largest are kept without branches, since which of a gate's scores are larger is as good
// as random; a NaN behind the first place never counts.
float ScoreOfGroup(GroupScore kind, const float* x, int64_t n) {
  float first = x[0], second = -std::numeric_limits<float>::infinity();
  for (int64_t i = 1; i < n; ++i) {
    const float lower = x[i] > first ? first : x[i];
    first = x[i] > first ? x[i] : first;
    second = lower > second ? lower : second;
  }
  if (kind == GroupScore::kMax || n == 1) return first;
  return first + second;
}

// Overwrites the scores of all groups but the best ones with `masked`. A group is kept if fewer
// than topk_groups beat it: by score, or by the lower index at the same score.
void LimitGroups(const GateSpec& gate, int64_t experts, float masked, float* scores,
                 float* group_scores) {
  const int64_t per_group = experts / gate.groups;
  for (int64_t g = 0; g < gate.groups; ++g) {
    group_scores[g] = ScoreOfGroup(gate.group_score, scores + g * per_group, per_group);
  }
  for (int64_t g = 0; g < gate.groups; ++g) {
    int64_t better = 0;
    for (int64_t lower = 0; lower < g; ++lower) better += group_scores[lower] >= group_scores[g];
    for (int64_t higher = g + 1; higher < gate.groups; ++higher) {
      better += group_scores[higher] > group_scores[g];
    }
    if (better >= gate.topk_groups) std::fill_n(scores + g * per_group, per_group, masked);
  }
}

void Score(GateScore kind, std::span<float> logits) {
  switch (kind) {
    case GateScore::kSigmoid:
      kernels::Sigmoid(logits.data(), static_cast<int64_t>(logits.size()));
      return;
    case GateScore::kSoftmax:
      kernels::Softmax(logits.data(), static_cast<int64_t>(logits.size()));
      return;
    case GateScore::kSoftmaxAfterTopK:
      return;
  }
}

// What is compared may differ from what is weighted: DeepSeek-V3 compares score + bias, V2 the
// score with masked groups at 0.0 (and takes its weight from there).
void FillSelection(std::span<const float> scores, std::span<const float> correction_bias,
                   float* selection) {
  std::copy(scores.begin(), scores.end(), selection);
  if (correction_bias.empty()) return;
  kernels::Add(selection, correction_bias.data(), static_cast<int64_t>(scores.size()));
}

// What experts of masked groups count.
float MaskedScore(const GateSpec& gate) {
  return gate.score == GateScore::kSigmoid ? -kInfinity : 0.0f;
}

}  // namespace

void TopK(const float* x, int64_t n, int64_t k, int32_t* out) {
  int64_t count = 0;
  float least = -std::numeric_limits<float>::infinity();  // what a value must beat once k are held
  for (int64_t i = 0; i < n; ++i) {
    if (count == k && !(x[i] > least)) continue;
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && x[i] > x[out[at - 1]]; --at) out[at] = out[at - 1];
    out[at] = static_cast<int32_t>(i);
    least = x[out[count - 1]];
  }
}

bool LimitsGroups(const GateSpec& gate) {
  return gate.group_score != GroupScore::kNone && gate.topk_groups < gate.groups;
}

int64_t GateScratch(const GateSpec& gate, int experts) {
  return int64_t{experts} + gate.groups;  // scores for selection, scores of groups
}

void SelectExperts(const GateSpec& gate, std::span<float> logits,
                   std::span<const float> correction_bias, float* scratch, int32_t* ids,
                   float* weights) {
  const int64_t experts = static_cast<int64_t>(logits.size());
  SY_DCHECK(gate.top_k <= experts);
  Score(gate.score, logits);
  float* selection = scratch;
  FillSelection(logits, correction_bias, selection);
  if (LimitsGroups(gate)) {
    LimitGroups(gate, experts, MaskedScore(gate), selection, scratch + experts);
  }
  TopK(selection, experts, gate.top_k, ids);
  std::sort(ids, ids + gate.top_k);

  WeighExperts(gate, WeighedScores(gate, !correction_bias.empty(), logits.data(), selection),
               {ids, static_cast<size_t>(gate.top_k)}, weights);
}

size_t SelectWithout(const GateSpec& gate, std::span<const uint8_t> gone,
                     std::span<const float> scores, std::span<const float> correction_bias,
                     float* scratch, std::span<int32_t> ids, float* weights) {
  const int64_t experts = static_cast<int64_t>(scores.size());
  float* selection = scratch;
  FillSelection(scores, correction_bias, selection);
  for (int64_t e = 0; e < experts; ++e) {
    if (gone[static_cast<size_t>(e)] || std::isnan(selection[e])) selection[e] = -kInfinity;
  }
  float least = -kInfinity;
  if (LimitsGroups(gate)) {
    least = MaskedScore(gate);
    LimitGroups(gate, experts, least, selection, scratch + experts);
  }
  TopK(selection, experts, static_cast<int64_t>(ids.size()), ids.data());
  const auto end =
      std::remove_if(ids.begin(), ids.end(), [&](int32_t e) { return !(selection[e] > least); });
  std::sort(ids.begin(), end);
  const std::span<const int32_t> found(ids.begin(), end);
  WeighExperts(gate, WeighedScores(gate, !correction_bias.empty(), scores.data(), selection), found,
               weights);
  return found.size();
}

const float* WeighedScores(const GateSpec& gate, bool has_correction_bias, const float* logits,
                           const float* scratch) {
  return !has_correction_bias && gate.score == GateScore::kSoftmax ? scratch : logits;
}

void WeighExperts(const GateSpec& gate, const float* scores, std::span<const int32_t> ids,
                  float* weights) {
  const size_t count = ids.size();
  for (size_t i = 0; i < count; ++i) weights[i] = scores[ids[i]];
  if (gate.score == GateScore::kSoftmaxAfterTopK) {
    kernels::Softmax(weights, static_cast<int64_t>(count));
  }
  if (gate.normalise) {
    float sum = 0;
    for (size_t i = 0; i < count; ++i) sum += weights[i];
    sum += gate.normalise_eps;
    for (size_t i = 0; i < count; ++i) weights[i] /= sum;
  }
  if (gate.scale != 1.0f) {
    for (size_t i = 0; i < count; ++i) weights[i] *= gate.scale;
  }
}

}  // namespace switchyard::router
