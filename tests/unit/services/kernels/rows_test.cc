// Norms, activations, softmax, rope and conversions, held bit for bit against the plain loops.
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "services/kernels/kernels.h"
#include "services/kernels/ops.h"
#include "services/kernels/scalar_math.h"
#include "tests/support/isa_name.h"
#include "tests/unit/services/kernels/random_data.h"

namespace switchyard::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kSizes[] = {1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 70, 192, 513};

// Normal values with the odd ones of IEEE 754 among them.
std::vector<float> Spiced(int64_t n, uint32_t seed, float scale) {
  std::vector<float> x = RandomFloats(n, seed, scale);
  const float spice[] = {0.0f,  -0.0f,  1e-40f,  -1e-45f, 88.6f,
                         89.5f, -87.5f, -100.0f, -104.5f, 1e-20f};
  for (size_t i = seed % 3; i < x.size(); i += 5) x[i] = spice[(i + seed) % std::size(spice)];
  return x;
}

std::vector<float> Loaded(const std::vector<std::byte>& data, DType dtype) {
  std::vector<float> out;
  for (size_t i = 0; i < data.size() / SizeOf(dtype); ++i) {
    out.push_back(At(data.data(), dtype, static_cast<int64_t>(i)));
  }
  return out;
}

class RowsTest : public testing::TestWithParam<Isa> {
 protected:
  const Ops& ops_ = OpsFor(GetParam());
  const Ops& reference_ = ReferenceFor(GetParam());
};

TEST_P(RowsTest, RmsNorm) {
  for (int64_t n : kSizes) {
    for (DType weight_dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (DType to : {DType::kF32, DType::kBF16}) {
        const std::vector<float> x = Spiced(n, 3, 2.0f);
        const std::vector<std::byte> w = Stored(RandomFloats(n, 4), weight_dtype, 1);
        const VectorView weight = {w.data() + SizeOf(weight_dtype), weight_dtype, n};
        for (const VectorView& view : {weight, VectorView{}}) {
          std::vector<std::byte> got(static_cast<size_t>(n) * SizeOf(to)), want(got);
          ops_.rms_norm(x.data(), n, view, 1e-6f, got.data(), to);
          reference_.rms_norm(x.data(), n, view, 1e-6f, want.data(), to);
          EXPECT_EQ(FirstDifference(Loaded(got, to), Loaded(want, to)), -1) << n;
        }
      }
    }
  }
}

TEST_P(RowsTest, RmsNormInPlaceOnAnyThreads) {
  const int64_t rows = 600, dim = 1024;
  const std::vector<float> x = RandomFloats(rows * dim, 9);
  const std::vector<float> w = RandomFloats(dim, 10);
  const VectorView weight = {reinterpret_cast<const std::byte*>(w.data()), DType::kF32, dim};
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    std::vector<float> y = x;
    Compute(GetParam(), pool)
        .RmsNorm(y.data(), dim, rows, dim, weight, 1e-5f, {y.data(), DType::kF32, dim});
    for (int64_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (int64_t i = 0; i < dim; ++i) squares += double{x[r * dim + i]} * x[r * dim + i];
      const double scale = 1 / std::sqrt(squares / dim + 1e-5);
      for (int64_t i = 0; i < dim; ++i) {
        const double truth = x[r * dim + i] * scale * w[i];
        ASSERT_NEAR(y[r * dim + i], truth, std::fabs(truth) * (dim / 16 / 2 + 8) * 0x1p-24);
      }
    }
  }
}

TEST_P(RowsTest, Activate) {
  for (int64_t width : kSizes) {
    for (bool interleaved : {false, true}) {
      for (bool clamped : {false, true}) {
        for (DType to : {DType::kF32, DType::kBF16}) {
          std::vector<float> in = Spiced(2 * width, 5, 5.0f);
          if (width > 30) in[3] = kNan, in[8] = kInf, in[width + 3] = -kInf;
          std::vector<std::byte> got(static_cast<size_t>(width) * SizeOf(to)), want(got);
          Compute::ActivationTask task = {.gate_up = in.data(),
                                          .stride = 2 * width,
                                          .rows = 1,
                                          .width = width,
                                          .interleaved = interleaved,
                                          .clamped = clamped,
                                          .limit = 7.0f,
                                          .alpha = 1.702f,
                                          .out = {got.data(), to, width}};
          ops_.activate(task, 0);
          task.out.data = want.data();
          reference_.activate(task, 0);
          EXPECT_EQ(FirstDifference(Loaded(got, to), Loaded(want, to)), -1)
              << width << interleaved << clamped;
        }
      }
    }
  }
}

TEST_P(RowsTest, ActivateTasksOfAllRows) {
  std::vector<float> in = RandomFloats(300 * 2 * 96, 6);
  std::vector<float> got(300 * 96), want(300 * 96);
  std::vector<Compute::ActivationTask> tasks;
  const int64_t cuts[] = {0, 1, 1, 57, 300};  // one task has no rows
  for (int t = 0; t < 4; ++t) {
    tasks.push_back({.gate_up = in.data() + cuts[t] * 192,
                     .stride = 192,
                     .rows = cuts[t + 1] - cuts[t],
                     .width = 96,
                     .out = {got.data() + cuts[t] * 96, DType::kF32, 96}});
  }
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    std::ranges::fill(got, -77.0f);
    Compute(GetParam(), pool).Activate(tasks);
    for (int64_t i = 0; i < 300 * 96; ++i) {
      const float gate = in[i / 96 * 192 + i % 96], up = in[i / 96 * 192 + 96 + i % 96];
      want[i] = SiluScalar(gate, 1.0f) * up;
    }
    EXPECT_EQ(FirstDifference(got, want), -1);
  }
}

TEST_P(RowsTest, Softmax) {
  for (int64_t n : kSizes) {
    for (float scale : {1.0f, 30.0f}) {
      for (float extra : {0.0f, -kInf, kInf, kNan}) {
        std::vector<float> got = RandomFloats(n, 7, scale);
        got[static_cast<size_t>(n / 2)] += extra;
        std::vector<float> want = got;
        ops_.softmax(got.data(), n);
        reference_.softmax(want.data(), n);
        EXPECT_EQ(FirstDifference(got, want), -1) << n << " " << extra;
      }
    }
  }
}

TEST_P(RowsTest, Sigmoid) {
  for (int64_t n : kSizes) {
    for (float extra : {0.0f, -kInf, kInf, kNan}) {
      std::vector<float> got = RandomFloats(n, 8, 30.0f);
      got[static_cast<size_t>(n / 2)] += extra;
      std::vector<float> want = got;
      ops_.sigmoid(got.data(), n);
      for (float& x : want) x = kernels::Sigmoid(x);
      EXPECT_EQ(FirstDifference(got, want), -1) << n << " " << extra;
    }
  }
}

TEST_P(RowsTest, Rope) {
  for (int dim : {2, 8, 30, 32, 34, 64, 66, 128}) {
    const std::vector<float> angles = RandomFloats(dim / 2, 8);
    std::vector<float> cos(angles.size()), sin(angles.size());
    for (size_t i = 0; i < angles.size(); ++i)
      cos[i] = std::cos(angles[i]), sin[i] = std::sin(angles[i]);
    for (bool interleaved : {false, true}) {
      const std::vector<float> x = RandomFloats(dim + 3, 9);
      std::vector<float> got = x, want = x;
      ops_.rope(got.data(), dim, interleaved, cos.data(), sin.data());
      reference_.rope(want.data(), dim, interleaved, cos.data(), sin.data());
      EXPECT_EQ(FirstDifference(got, want), -1) << dim << interleaved;
      for (int i = 0; i < dim / 2; ++i) {
        const int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + dim / 2;
        const double error = (std::fabs(x[a]) + std::fabs(x[b])) * 0x1p-22;
        EXPECT_NEAR(got[a], double{x[a]} * cos[i] - double{x[b]} * sin[i], error);
        EXPECT_NEAR(got[b], double{x[b]} * cos[i] + double{x[a]} * sin[i], error);
      }
    }
  }
}

TEST_P(RowsTest, Sums) {
  for (int64_t n : kSizes) {
    const std::vector<float> x = Spiced(n, 10, 1.0f);
    std::vector<float> got = Spiced(n, 11, 1.0f), want = got;
    ops_.add_scaled(got.data(), x.data(), 0.37f, n);
    reference_.add_scaled(want.data(), x.data(), 0.37f, n);
    EXPECT_EQ(FirstDifference(got, want), -1) << n;
    ops_.add(got.data(), x.data(), n);
    reference_.add(want.data(), x.data(), n);
    EXPECT_EQ(FirstDifference(got, want), -1) << n;
  }
}

TEST_P(RowsTest, ConversionsOfEveryUpperHalf) {
  std::vector<float> x;
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (uint32_t lower : {0x0000u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      x.push_back(std::bit_cast<float>((upper << 16) | lower));
    }
  }
  const int64_t n = static_cast<int64_t>(x.size()) - 3;  // not a whole number of lanes
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    std::vector<std::byte> stored(x.size() * SizeOf(dtype));
    ops_.convert(x.data(), n, dtype, stored.data());
    std::vector<float> want = Loaded(Stored(x, dtype), dtype), got(x.size(), 0.0f);
    want.resize(static_cast<size_t>(n));
    std::vector<float> stored_values = Loaded(stored, dtype);
    stored_values.resize(static_cast<size_t>(n));
    EXPECT_EQ(FirstDifference(stored_values, want), -1) << Name(dtype);
    ops_.convert_to_float(stored.data(), dtype, n, got.data());
    got.resize(static_cast<size_t>(n));
    EXPECT_EQ(FirstDifference(got, want), -1) << Name(dtype);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, RowsTest, testing::ValuesIn(SupportedIsas()), IsaName);

TEST(Exp, IsWithinOneUlpEverywhere) {
  double worst = 0;
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += 4099) {  // a prime stride over all floats
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (!(x > -110.0f && x < 90.0f)) continue;
    const double truth = std::exp(double{x});
    const float got = Exp(x);
    if (truth > std::numeric_limits<float>::max()) continue;
    const float near = static_cast<float>(truth);
    const double ulp = std::max(std::nextafter(near, kInf) - near, 0x1p-149f);
    worst = std::max(worst, std::fabs(got - truth) / ulp);
  }
  EXPECT_LE(worst, 1.0);
}

TEST(Exp, KnowsItsEnds) {
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(-kInf), 0.0f);
  EXPECT_EQ(Exp(-200.0f), 0.0f);
  EXPECT_EQ(Exp(kInf), kInf);
  EXPECT_EQ(Exp(89.0f), kInf);
  EXPECT_LT(Exp(88.72f), kInf);
  EXPECT_GT(Exp(-103.0f), 0.0f);
  EXPECT_TRUE(std::isnan(Exp(kNan)));
  EXPECT_EQ(Sigmoid(-kInf), 0.0f);
  EXPECT_EQ(Sigmoid(kInf), 1.0f);
  EXPECT_EQ(Sigmoid(0.0f), 0.5f);
}

TEST(Softmax, SumsToOneAndMatchesTheTruth) {
  std::vector<float> x = RandomFloats(1000, 12, 3.0f);
  double sum = 0, max = -kInf;
  for (float v : x) max = std::max<double>(max, v);
  for (float v : x) sum += std::exp(v - max);
  std::vector<float> y = x;
  Softmax(y.data(), 1000);
  for (size_t i = 0; i < x.size(); ++i) {
    const double truth = std::exp(x[i] - max) / sum;
    // One rounding of x - max (up to 32 ulps of 1 in size), then of exp, the sum and the quotient.
    EXPECT_NEAR(y[i], truth, truth * (32 + 1000.0 / 16 + 6) * 0x1p-24);
  }
}

}  // namespace
}  // namespace switchyard::kernels
