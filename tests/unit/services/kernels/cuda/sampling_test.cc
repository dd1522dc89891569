// Sampling against the router's own sampler, run by tests/support/simt.
#include "services/kernels/cuda/sampling.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>
#include <vector>

#include "router/sample/random.h"
#include "router/sample/sampler.h"

namespace switchyard::cuda {
namespace {

std::vector<float> Logits(int vocab, int steps, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> out(static_cast<size_t>(vocab));
  for (float& x : out) {
    x = std::round(normal(random) * static_cast<float>(steps)) / static_cast<float>(steps);
  }
  return out;
}

SampleTask TaskOf(const router::SamplingParams& params, int choice, int64_t position) {
  return {.temperature = params.temperature,
          .top_k = params.top_k,
          .top_p = params.top_p,
          .min_p = params.min_p,
          .seed = params.seed,
          .position = position,
          .choice = choice};
}

template <int kThreads>
std::vector<int32_t> OnDevice(const std::vector<float>& logits, int vocab,
                              const std::vector<SampleTask>& tasks) {
  std::vector<int32_t> tokens(tasks.size(), -7);
  std::vector<Candidate> scratch(tasks.size() * static_cast<size_t>(vocab), {-1, NAN});
  const SampleArgs args{.logits = logits.data(),
                        .stride = vocab,
                        .rows = static_cast<int32_t>(tasks.size()),
                        .vocab = vocab,
                        .tasks = tasks.data(),
                        .scratch = scratch.data(),
                        .tokens = tokens.data()};
  EXPECT_EQ(LaunchSampling<kThreads>(args, nullptr), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  return tokens;
}

// Draws at many positions; returns how many different tokens came.
size_t ExpectTheSamplers(router::SamplingParams params, int vocab, int steps) {
  constexpr int kRows = 24;
  params.seed = 0x123456789abcdefu;
  std::vector<float> logits;
  std::vector<SampleTask> tasks;
  std::vector<int32_t> expected;
  router::Sampler sampler(vocab);
  const router::TokenHistory history(params, {});
  for (int r = 0; r < kRows; ++r) {
    const std::vector<float> row = Logits(vocab, steps, static_cast<uint32_t>(r / 8));
    logits.insert(logits.end(), row.begin(), row.end());
    tasks.push_back(TaskOf(params, r % 3, r * 1000));
    const auto token = sampler.Sample({.logits = row,
                                       .params = params,
                                       .history = history,
                                       .banned = {},
                                       .choice = r % 3,
                                       .position = r * 1000});
    EXPECT_TRUE(token.ok());
    expected.push_back(token->id);
  }
  EXPECT_EQ((OnDevice<64>(logits, vocab, tasks)), expected);
  // Threads, and who else is in the call, change nothing.
  const std::vector<float> last(logits.end() - vocab, logits.end());
  EXPECT_EQ((OnDevice<256>(last, vocab, {tasks.back()})), std::vector<int32_t>{expected.back()});
  return std::set<int32_t>(expected.begin(), expected.end()).size();
}

TEST(CudaSampling, UniformIsTheRouters) {
  for (const int64_t position : {int64_t{0}, int64_t{77}, int64_t{1} << 40}) {
    for (const uint64_t seed : {uint64_t{0}, uint64_t{0xfedcba9876543210u}}) {
      EXPECT_EQ(Uniform(seed, 3, position), router::Uniform(seed, 3, position));
    }
  }
}

TEST(CudaSampling, Greedy) {
  EXPECT_EQ(ExpectTheSamplers({}, 1003, 1 << 20), 3u);
  EXPECT_EQ(ExpectTheSamplers({}, 1003, 1), 3u) << "many are the largest";
}

TEST(CudaSampling, TemperatureAndMinP) {
  EXPECT_GT(ExpectTheSamplers({.temperature = 1}, 1003, 1 << 20), 8u);
  EXPECT_GT(ExpectTheSamplers({.temperature = 5}, 1003, 1), 15u);
  EXPECT_GT(ExpectTheSamplers({.temperature = 1, .min_p = 0.1f}, 1003, 1 << 20), 5u);
  EXPECT_GT(ExpectTheSamplers({.temperature = 1}, 7, 1 << 20), 3u);
}

TEST(CudaSampling, TopK) {
  EXPECT_GT(ExpectTheSamplers({.temperature = 2, .top_k = 40}, 1003, 1 << 20), 8u);
  EXPECT_GT(ExpectTheSamplers({.temperature = 2, .top_k = 10}, 1003, 1), 8u) << "ties at the cut";
  EXPECT_GT(ExpectTheSamplers({.temperature = 9, .top_k = 600}, 1003, 1 << 20), 15u);
  EXPECT_EQ(ExpectTheSamplers({.temperature = 1, .top_k = 1}, 1003, 1), 3u);
  EXPECT_GT(ExpectTheSamplers({.temperature = 1, .top_k = 50}, 7, 1 << 20), 3u);
}

TEST(CudaSampling, TopP) {
  EXPECT_GT(ExpectTheSamplers({.temperature = 1, .top_p = 0.9f}, 1003, 1 << 20), 8u);
  EXPECT_GT(ExpectTheSamplers({.temperature = 9, .top_p = 0.95f}, 1003, 1), 15u) << "ties";
  EXPECT_EQ(ExpectTheSamplers({.temperature = 1, .top_p = 0.0f}, 1003, 1 << 20), 3u);
  EXPECT_GT(ExpectTheSamplers({.temperature = 2, .top_k = 50, .top_p = 0.7f, .min_p = 0.01f}, 1003,
                              1 << 20),
            5u);
  EXPECT_GT(ExpectTheSamplers({.temperature = 3, .top_k = 30, .top_p = 0.8f}, 1003, 2), 8u);
}

TEST(CudaSampling, NothingToChoose) {
  std::vector<float> logits = Logits(300, 16, 1);
  logits[150] = NAN;
  EXPECT_EQ((OnDevice<64>(logits, 300, {{}})), std::vector<int32_t>{-1});
  logits[150] = INFINITY;
  EXPECT_EQ((OnDevice<64>(logits, 300, {{.temperature = 1}})), std::vector<int32_t>{-1});
  logits.assign(300, -INFINITY);
  EXPECT_EQ((OnDevice<64>(logits, 300, {{.temperature = 1}})), std::vector<int32_t>{-1});
  logits[299] = -5;
  EXPECT_EQ((OnDevice<64>(logits, 300, {{.temperature = 1}})), std::vector<int32_t>{299});
}

TEST(CudaSampling, ChangedLogits) {
  std::vector<float> logits = {1, -2, 3, 4, 5, 6};
  const std::vector<LogitChange> changes = {
      {.row = 0, .id = 1, .repetition = 2, .frequency = 0.5f, .presence = 0.25f},
      {.row = 1, .id = 0, .bias = 1, .repetition = 2, .presence = 0.25f},
      {.row = 1, .id = 2, .bias = -INFINITY}};
  ASSERT_EQ(LaunchChangeLogits(logits.data(), 3, changes.data(), 3, nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(logits, (std::vector<float>{1, -4.75f, 3, 2.25f, 5, -INFINITY}));
}

}  // namespace
}  // namespace switchyard::cuda
