#include "tools/quantize/matrix_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

namespace switchyard::quantize {
namespace {

std::vector<float> Random(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) x = normal(random);
  return out;
}

template <typename T>
T At(const std::vector<std::byte>& data, int64_t i) {
  T value;
  std::memcpy(&value, data.data() + i * static_cast<int64_t>(sizeof(T)), sizeof value);
  return value;
}

// What other tools read out of the tensors.
float Decoded(const Format& f, const std::vector<std::vector<std::byte>>& data, int64_t in,
              int64_t r, int64_t c) {
  switch (f.scheme) {
    case Scheme::kInt8:
      return static_cast<float>(At<int8_t>(data[0], r * in + c)) * ToFloat(At<bf16>(data[1], r));
    case Scheme::kFp8:
      return ToFloat(At<f8e4m3>(data[0], r * in + c)) *
             At<float>(data[1], r / 128 * ((in + 127) / 128) + c / 128);
    default: {
      const uint32_t word = At<uint32_t>(data[0], (r * in + c) / 8);
      const int q = static_cast<int>(word >> (4 * (c % 8)) & 15) - 8;
      return static_cast<float>(q) * ToFloat(At<bf16>(data[1], (r * in + c) / f.group));
    }
  }
}

constexpr Format kFormats[] = {
    {Scheme::kInt8}, {Scheme::kInt4, 32}, {Scheme::kInt4Awq, 64}, {Scheme::kFp8}};

TEST(MatrixCodecTest, WhatIsReadBackLosesWhatIsReported) {
  constexpr int64_t kOut = 130, kIn = 192;
  const std::vector<float> w = Random(kOut * kIn, 3);
  // Relative errors of a normal distribution.
  const double most[] = {0.01, 0.12, 0.13, 0.03};
  for (size_t i = 0; i < std::size(kFormats); ++i) {
    const Format& format = kFormats[i];
    kernels::ThreadPool one(1), three(3);
    std::vector<std::vector<std::byte>> data, again;
    const MatrixTask task = {.w = w.data(), .out = kOut, .in = kIn};
    const ErrorSum error = Encode(format, task, one, &data);
    Encode(format, task, three, &again);
    EXPECT_EQ(data, again);
    const auto tensors = StoredAs(format, "x.weight", kOut, kIn);
    ASSERT_EQ(tensors.size(), data.size());
    for (size_t t = 0; t < data.size(); ++t) EXPECT_EQ(tensors[t].bytes(), data[t].size());
    double lost = 0, all = 0;
    for (int64_t r = 0; r < kOut; ++r) {
      for (int64_t c = 0; c < kIn; ++c) {
        const double x = w[static_cast<size_t>(r * kIn + c)];
        lost += std::pow(x - Decoded(format, data, kIn, r, c), 2);
        all += x * x;
      }
    }
    EXPECT_NEAR(error.Relative(), std::sqrt(lost / all), 1e-6);
    EXPECT_LT(error.Relative(), most[i]);
    EXPECT_GT(error.Relative(), 0);
  }
}

TEST(MatrixCodecTest, NamesAndShapesAreThoseThatToolsKnow) {
  const auto int4 = StoredAs({Scheme::kInt4, 32}, "a.weight", 6, 64);
  ASSERT_EQ(int4.size(), 3u);
  EXPECT_EQ(int4[0].name, "a.weight_packed");
  EXPECT_EQ(int4[0].shape, (std::vector<int64_t>{6, 8}));
  EXPECT_EQ(int4[1].name, "a.weight_scale");
  EXPECT_EQ(int4[1].shape, (std::vector<int64_t>{6, 2}));
  EXPECT_EQ(int4[2].name, "a.weight_shape");
  const auto fp8 = StoredAs({Scheme::kFp8}, "a.weight", 130, 192);
  EXPECT_EQ(fp8[1].name, "a.weight_scale_inv");
  EXPECT_EQ(fp8[1].shape, (std::vector<int64_t>{2, 2}));
}

TEST(MatrixCodecTest, ZerosAndWholeNumbersOfStepsAreExact) {
  for (const Format& format : kFormats) {
    kernels::ThreadPool pool(1);
    std::vector<float> w(2 * 64, 0.0f);
    for (int64_t c = 0; c < 64; ++c) w[static_cast<size_t>(c)] = c % 2 == 0 ? -8.0f : 4.0f;
    std::vector<std::vector<std::byte>> data;
    const ErrorSum error = Encode(format, {.w = w.data(), .out = 2, .in = 64}, pool, &data);
    EXPECT_LT(error.Relative(), 0.02);  // bf16 scales, and int4's steps between candidates
    for (int64_t c = 0; c < 64; ++c) EXPECT_EQ(Decoded(format, data, 64, 1, c), 0);
  }
}

TEST(MatrixCodecTest, ImportantColumnsLoseLess) {
  kernels::ThreadPool pool(1);
  std::vector<float> w = Random(64 * 32, 5), importance(32, 1.0f);
  for (size_t r = 0; r < 64; ++r) w[r * 32 + 7] *= 4;  // the group's scale is made for it
  for (size_t c = 0; c < 32; ++c) importance[c] = c == 7 ? 0.0f : 1.0f;
  std::vector<std::vector<std::byte>> data;
  MatrixTask task = {.w = w.data(), .out = 64, .in = 32};
  const auto rest = [&] {
    double lost = 0;
    for (int64_t i = 0; i < 64 * 32; ++i) {
      if (i % 32 == 7) continue;
      lost += std::pow(
          w[static_cast<size_t>(i)] - Decoded({Scheme::kInt4, 32}, data, 32, i / 32, i % 32), 2);
    }
    return lost;
  };
  Encode({Scheme::kInt4, 32}, task, pool, &data);
  const double alike = rest();
  task.importance = importance.data();
  Encode({Scheme::kInt4, 32}, task, pool, &data);
  EXPECT_LT(rest(), alike);
}

}  // namespace
}  // namespace switchyard::quantize
