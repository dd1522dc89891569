#include "services/model/rope_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace switchyard {
namespace {

TEST(InverseFrequencies, PlainAndLinear) {
  RopeSpec rope{.theta = 10000, .dim = 8};
  const auto plain = InverseFrequencies(rope);
  ASSERT_EQ(plain.size(), 4u);
  EXPECT_DOUBLE_EQ(plain[0], 1.0);
  EXPECT_NEAR(plain[1], 0.1, 1e-15);
  EXPECT_NEAR(plain[3], 0.001, 1e-15);
  rope.scaling = RopeScaling::kLinear;
  rope.factor = 4;
  EXPECT_DOUBLE_EQ(InverseFrequencies(rope)[1], plain[1] / 4);
}

// Values of transformers' _compute_yarn_parameters for deepseek-v3-tiny's rope (dim 8, theta 1e4,
// factor 16, original length 128): low 0, high 1 after truncation.
TEST(InverseFrequencies, YarnTruncated) {
  const RopeSpec rope{.theta = 10000,
                      .dim = 8,
                      .scaling = RopeScaling::kYarn,
                      .factor = 16,
                      .original_max_position = 128};
  const auto f = InverseFrequencies(rope);
  // correction dims: 8·ln(128/(32·2π))/(2·ln 1e4) < 0 → 0; 8·ln(128/2π)/(2·ln 1e4) = 1.309 → 2
  EXPECT_DOUBLE_EQ(f[0], 1.0);
  EXPECT_NEAR(f[1], 0.1 * 0.5 + 0.1 / 16 * 0.5, 1e-15);
  EXPECT_NEAR(f[2], 0.01 / 16, 1e-15);
  EXPECT_NEAR(f[3], 0.001 / 16, 1e-15);
}

TEST(InverseFrequencies, YarnUntruncated) {
  const RopeSpec rope{.theta = 10000,
                      .dim = 8,
                      .scaling = RopeScaling::kYarn,
                      .factor = 16,
                      .original_max_position = 128,
                      .truncate = false};
  const double high = 8 * std::log(128 / (2 * M_PI)) / (2 * std::log(10000.0));
  const auto f = InverseFrequencies(rope);
  EXPECT_DOUBLE_EQ(f[0], 1.0);
  EXPECT_NEAR(f[1], 0.1 * (1 - 1 / high) + 0.1 / 16 / high, 1e-15);
  EXPECT_NEAR(f[2], 0.01 / 16, 1e-15);
}

TEST(InverseFrequencies, Llama3KeepsHighAndDividesLowFrequencies) {
  const RopeSpec rope{.theta = 10000,
                      .dim = 64,
                      .scaling = RopeScaling::kLlama3,
                      .factor = 8,
                      .original_max_position = 128,
                      .low_freq_factor = 1,
                      .high_freq_factor = 4};
  RopeSpec plain_rope = rope;
  plain_rope.scaling = RopeScaling::kNone;
  const auto plain = InverseFrequencies(plain_rope);
  const auto f = InverseFrequencies(rope);
  int between = 0;
  for (size_t i = 0; i < f.size(); ++i) {
    const double wavelength = 2 * M_PI / plain[i];
    if (wavelength < 32) {
      EXPECT_DOUBLE_EQ(f[i], plain[i]);
    } else if (wavelength > 128) {
      EXPECT_DOUBLE_EQ(f[i], plain[i] / 8);
    } else {
      const double smooth = (128 / wavelength - 1) / 3;
      EXPECT_NEAR(f[i], plain[i] * ((1 - smooth) / 8 + smooth), 1e-15);
      ++between;
    }
  }
  EXPECT_GT(between, 0);
}

TEST(RopeTable, RowsAreCosAndSinTimesTheFactor) {
  const RopeSpec rope{.theta = 10000, .dim = 8, .attention_factor = 1.25};
  RopeTable table(rope, 3000);
  table.Reserve(2);
  EXPECT_GE(table.reserved(), 2);
  const float* first = table.Cos(1);
  table.Reserve(2500);
  EXPECT_EQ(first, table.Cos(1)) << "rows must not move when the table grows";
  const auto f = InverseFrequencies(rope);
  for (int64_t p : {0, 1, 1023, 1024, 2499}) {
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_FLOAT_EQ(table.Cos(p)[i],
                      static_cast<float>(1.25 * std::cos(static_cast<double>(p) * f[i])));
      EXPECT_FLOAT_EQ(table.Sin(p)[i],
                      static_cast<float>(1.25 * std::sin(static_cast<double>(p) * f[i])));
    }
  }
}

// The definitions once more, in long double: published settings of each scaling.
struct Far {
  const char* name;
  RopeSpec rope;
};

long double FrequencyOf(const RopeSpec& rope, int i) {
  const long double pi = 3.141592653589793238462643383279502884L, dim = rope.dim;
  const long double plain = powl(rope.theta, -2.0L * i / dim);
  const auto turns_at = [&](long double turns) {
    return dim * logl(rope.original_max_position / (turns * 2 * pi)) / (2 * logl(rope.theta));
  };
  switch (rope.scaling) {
    case RopeScaling::kNone:
      return plain;
    case RopeScaling::kLinear:
      return plain / rope.factor;
    case RopeScaling::kYarn: {
      const long double low = std::max(floorl(turns_at(rope.beta_fast)), 0.0L);
      const long double high = std::min(ceill(turns_at(rope.beta_slow)), dim - 1);
      const long double ramp = std::clamp((i - low) / (high - low), 0.0L, 1.0L);
      return plain / rope.factor * ramp + plain * (1 - ramp);
    }
    case RopeScaling::kLlama3: {
      const long double wavelengths = rope.original_max_position * plain / (2 * pi);
      const long double smooth = std::clamp(
          (wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor),
          0.0L, 1.0L);
      return plain / rope.factor * (1 - smooth) + plain * smooth;
    }
  }
  return 0;
}

TEST(RopeTable, FarPositionsAreRightToTheLastBits) {
  const Far kFar[] = {
      {"plain", {.theta = 1e6, .dim = 128}},
      {"linear", {.theta = 1e4, .dim = 128, .scaling = RopeScaling::kLinear, .factor = 8}},
      {"yarn",
       {.theta = 1e4,
        .dim = 64,
        .scaling = RopeScaling::kYarn,
        .factor = 40,
        .original_max_position = 4096}},
      {"llama3",
       {.theta = 5e5,
        .dim = 128,
        .scaling = RopeScaling::kLlama3,
        .factor = 8,
        .original_max_position = 8192,
        .low_freq_factor = 1,
        .high_freq_factor = 4}}};
  constexpr int64_t kLength = 163840;
  for (const Far& far : kFar) {
    RopeTable table(far.rope, kLength);
    table.Reserve(kLength);
    for (const int64_t p : {4095, 4096, 8191, 8192, 32767, 32768, 65537, 131071, 163839}) {
      for (int i = 0; i < far.rope.dim / 2; ++i) {
        const long double angle = static_cast<long double>(p) * FrequencyOf(far.rope, i);
        // A float of at most 1 and what a double loses of an angle of up to 2^18.
        EXPECT_NEAR(table.Cos(p)[i], static_cast<double>(cosl(angle)), 0x1p-24)
            << far.name << " " << p << " " << i;
        EXPECT_NEAR(table.Sin(p)[i], static_cast<double>(sinl(angle)), 0x1p-24)
            << far.name << " " << p << " " << i;
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
