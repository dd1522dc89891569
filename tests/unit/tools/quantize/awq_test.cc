#include "tools/quantize/awq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tools/quantize/matrix_codec.h"

namespace switchyard::quantize {
namespace {

constexpr int64_t kRows = 64, kIn = 64, kGroup = 32;

std::vector<float> Weights() {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> w(kRows * kIn);
  for (float& x : w) x = normal(random);
  return w;
}

// Inputs of size 1, but for a few channels.
ChannelStats Stats(float large) {
  std::vector<float> x(kIn, 1.0f);
  for (const size_t c : {3, 20, 45}) x[c] = large;
  ChannelStats stats;
  for (int i = 0; i < 10; ++i) stats.Add(x.data(), 1, kIn);
  return stats;
}

// Σ mean x² · (w - kept)² of what Encode keeps with these scales.
double LossWith(const std::vector<float>& w, const std::vector<float>& scale,
                const ChannelStats& stats, kernels::ThreadPool& pool) {
  std::vector<float> scaled = w;
  for (size_t i = 0; i < scaled.size(); ++i) scaled[i] *= scale[i % kIn];
  std::vector<std::vector<std::byte>> data;
  Encode({Scheme::kInt4Awq, kGroup}, {.w = scaled.data(), .out = kRows, .in = kIn}, pool, &data);
  const auto* words = reinterpret_cast<const uint32_t*>(data[0].data());
  const auto* scales = reinterpret_cast<const bf16*>(data[1].data());
  double loss = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    const int q = static_cast<int>(words[i / 8] >> (4 * (i % 8)) & 15) - 8;
    const double kept = static_cast<double>(q) * ToFloat(scales[i / kGroup]) / scale[i % kIn];
    loss += std::pow(w[i] - kept, 2) * stats.square[i % kIn] / static_cast<double>(stats.rows);
  }
  return loss;
}

TEST(AwqTest, LargeInputsGetLargeScalesAndLessIsLost) {
  kernels::ThreadPool pool(2);
  const std::vector<float> w = Weights();
  const ChannelStats stats = Stats(30);
  const std::vector<float> scale = SearchAwqScale(w, kIn, kGroup, stats, pool);
  EXPECT_GT(scale[3], 1.2f * scale[4]);
  EXPECT_EQ(scale[3], scale[45]);
  const double plain = LossWith(w, std::vector<float>(kIn, 1.0f), stats, pool);
  EXPECT_LT(LossWith(w, scale, stats, pool), 0.7 * plain);
}

TEST(AwqTest, WithoutEnoughOfATextNothingIsScaled) {
  kernels::ThreadPool pool(1);
  ChannelStats few;
  const std::vector<float> x(kIn, 5.0f);
  few.Add(x.data(), 1, kIn);
  const std::vector<float> ones(kIn, 1.0f);
  EXPECT_EQ(SearchAwqScale(Weights(), kIn, kGroup, few, pool), ones);
  EXPECT_TRUE(ImportanceOf(few, ones).empty());
  EXPECT_EQ(SearchAwqScale(Weights(), kIn, kGroup, Stats(1), pool), ones) << "all inputs alike";
}

}  // namespace
}  // namespace switchyard::quantize
