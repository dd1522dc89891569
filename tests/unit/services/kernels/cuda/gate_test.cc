// The gate's choice against the router's own, bit for bit, run by tests/support/simt.
#include "services/kernels/cuda/gate.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>
#include <vector>

#include "router/graph/gate.h"

namespace switchyard::cuda {
namespace {

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Choice OnDevice(const GateSpec& spec, int experts, const std::vector<float>& logits,
                const std::vector<float>& bias) {
  const auto rows = static_cast<int32_t>(logits.size()) / experts;
  Choice out;
  out.ids.assign(static_cast<size_t>(rows * spec.top_k), -1);
  out.weights.assign(out.ids.size(), NAN);
  const GateArgs args{.logits = logits.data(),
                      .rows = rows,
                      .experts = experts,
                      .correction_bias = bias.empty() ? nullptr : bias.data(),
                      .score = static_cast<GateScore>(spec.score),
                      .group_score = static_cast<GroupScore>(spec.group_score),
                      .groups = spec.groups,
                      .topk_groups = spec.topk_groups,
                      .top_k = spec.top_k,
                      .normalise = spec.normalise,
                      .normalise_eps = spec.normalise_eps,
                      .scale = spec.scale,
                      .ids = out.ids.data(),
                      .weights = out.weights.data()};
  EXPECT_EQ(LaunchGate(args, nullptr), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  return out;
}

// Few distinct logits, so that many are equal; the first row has one only.
std::vector<float> Logits(int rows, int experts, int steps) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(rows * experts), 0.5f);
  for (size_t i = static_cast<size_t>(experts); i < out.size(); ++i) {
    out[i] = std::round(normal(random) * static_cast<float>(steps)) / static_cast<float>(steps);
  }
  return out;
}

void ExpectTheRouters(const GateSpec& spec, int experts, bool bias) {
  for (const int steps : {2, 1 << 20}) {
    const std::vector<float> logits = Logits(9, experts, steps);
    std::vector<float> correction;
    for (int e = 0; bias && e < experts; ++e) {
      correction.push_back(0.1f * static_cast<float>(e % 3));
    }
    const Choice device = OnDevice(spec, experts, logits, correction);
    Choice router = device;
    std::vector<float> scratch(static_cast<size_t>(router::GateScratch(spec, experts)));
    for (size_t r = 0; r < 9; ++r) {
      std::vector<float> row(logits.begin() + static_cast<ptrdiff_t>(r) * experts,
                             logits.begin() + static_cast<ptrdiff_t>(r + 1) * experts);
      const size_t at = r * static_cast<size_t>(spec.top_k);
      router::SelectExperts(spec, row, correction, scratch.data(), &router.ids[at],
                            &router.weights[at]);
    }
    EXPECT_EQ(device.ids, router.ids) << steps;
    EXPECT_EQ(device.weights, router.weights) << steps;
  }
}

TEST(CudaGate, DeepseekV3) {
  ExpectTheRouters({.score = switchyard::GateScore::kSigmoid,
                    .group_score = switchyard::GroupScore::kTop2Sum,
                    .groups = 8,
                    .topk_groups = 4,
                    .top_k = 8,
                    .normalise = true,
                    .normalise_eps = 1e-20f,
                    .scale = 2.5f},
                   256, true);
}
TEST(CudaGate, DeepseekV2) {
  ExpectTheRouters({.score = switchyard::GateScore::kSoftmax,
                    .group_score = switchyard::GroupScore::kMax,
                    .groups = 8,
                    .topk_groups = 3,
                    .top_k = 6,
                    .scale = 16},
                   160, false);
  ExpectTheRouters({.score = switchyard::GateScore::kSoftmax, .top_k = 6}, 64, false);
}
TEST(CudaGate, QwenAndMixtral) {
  ExpectTheRouters({.score = switchyard::GateScore::kSoftmax, .top_k = 8, .normalise = true}, 128,
                   false);
  ExpectTheRouters({.score = switchyard::GateScore::kSoftmax, .top_k = 2, .normalise = true}, 8,
                   false);
}
TEST(CudaGate, GptOss) {
  ExpectTheRouters({.score = switchyard::GateScore::kSoftmaxAfterTopK, .top_k = 4}, 32, false);
  ExpectTheRouters({.score = switchyard::GateScore::kSoftmaxAfterTopK, .top_k = 20}, 100, false);
}
TEST(CudaGate, AllExpertsAndManyGroups) {
  ExpectTheRouters({.score = switchyard::GateScore::kSigmoid, .top_k = 5, .normalise = true}, 5,
                   true);
  ExpectTheRouters({.score = switchyard::GateScore::kSigmoid,
                    .group_score = switchyard::GroupScore::kTop2Sum,
                    .groups = 40,
                    .topk_groups = 7,
                    .top_k = 9},
                   120, true);
}

TEST(CudaGate, NoNumbersGiveDistinctExperts) {
  std::vector<float> logits(40, NAN);
  logits[17] = 1;
  const GateSpec spec = {.score = switchyard::GateScore::kSigmoid, .top_k = 10};
  const Choice choice = OnDevice(spec, 40, logits, {});
  const std::set<int32_t> ids(choice.ids.begin(), choice.ids.end());
  EXPECT_EQ(ids.size(), 10u);
  EXPECT_TRUE(ids.contains(17));
  EXPECT_GE(*ids.begin(), 0);
  EXPECT_LT(*ids.rbegin(), 40);
}

TEST(CudaGate, RefusesWhatItDoesNotTake) {
  EXPECT_EQ(LaunchGate({.rows = 1, .experts = 2000, .top_k = 2}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchGate({.rows = 1, .experts = 64, .top_k = 33}, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace switchyard::cuda
