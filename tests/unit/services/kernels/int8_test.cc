// Blocked weights: what the blocks say, products in integers, and the same upcast.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>

#include "services/kernels/kernels.h"
#include "services/kernels/ops.h"
#include "services/tensor/buffer.h"
#include "tests/unit/services/kernels/random_data.h"

namespace switchyard::kernels {
namespace {

constexpr DType kBlocked[] = {DType::kQ8_0, DType::kQ4_0, DType::kMXFP4,
                              DType::kQ4K,  DType::kQ5K,  DType::kQ6K};

// Any bytes are weights, if only the scales are ordinary numbers.
std::vector<std::byte> RandomBlocks(DType dtype, int64_t elements, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> out(static_cast<size_t>(BytesOf(dtype, elements)));
  for (std::byte& b : out) b = static_cast<std::byte>(random());
  const auto scale = [&](std::byte* at) {
    const f16 d = ToF16(0.01f + 0.0001f * static_cast<float>(random() % 256));
    std::memcpy(at, &d, sizeof(d));
  };
  const int64_t bytes = BlockOf(dtype).bytes;
  for (std::byte* b = out.data(); b != out.data() + out.size(); b += bytes) {
    if (dtype == DType::kMXFP4) {
      b[0] = static_cast<std::byte>(118 + random() % 8);
    } else {
      scale(dtype == DType::kQ6K ? b + 208 : b);
      if (dtype == DType::kQ4K || dtype == DType::kQ5K) scale(b + 2);
    }
  }
  return out;
}

struct Int8Problem {
  Int8Problem(DType dtype, int64_t rows, int64_t out, int64_t in, bool extras, uint32_t seed,
              DType x_dtype = DType::kBF16, WeightLayout layout = WeightLayout::kOutIn) {
    const int64_t block = BlockOf(dtype).elements, slack = extras ? 7 : 0;
    const int64_t stored_rows = layout == WeightLayout::kOutIn ? out : in;
    const int64_t width = layout == WeightLayout::kOutIn ? in : out;
    const int64_t stride = width + (extras ? block : 0), x_rows = extras ? rows + 3 : rows;
    x_values = RandomFloats(x_rows * (in + slack), seed);
    if (rows > 2) std::fill_n(x_values.begin() + (in + slack), 32, 0.0f);  // a piece of zeros
    x = Stored(x_values, x_dtype);
    w = RandomBlocks(dtype, stored_rows * stride, seed + 1);
    bias = Stored(RandomFloats(out, seed + 2), DType::kF32);
    for (int64_t m = 0; m < rows; ++m) gather.push_back(static_cast<int32_t>((m * 7 + 3) % x_rows));
    y.assign(static_cast<size_t>(rows * (out + slack)), -77.0f);
    task = {.x = {x.data(), x_dtype, in + slack},
            .rows = rows,
            .gather = extras ? gather.data() : nullptr,
            .w = {w.data(), dtype, layout, out, in, stride},
            .y = y.data(),
            .y_stride = out + slack};
    if (extras) task.bias = {bias.data(), DType::kF32, out};
  }

  std::vector<float> Run(const Ops& ops) {
    const int64_t row_bytes = QuantizedRows::RowBytes(task.w.in);
    AlignedBuffer quantized(static_cast<size_t>((task.rows + 15) * row_bytes));
    const QuantizedRows rows = {quantized.data(), task.w.in};
    for (int64_t m = 0; m < task.rows; ++m) {
      ops.quantize(reinterpret_cast<const bf16*>(RowAt(task, m)), task.w.in, rows.row(m));
    }
    AlignedBuffer scratch(static_cast<size_t>(MatMulScratchFloats(task)) * sizeof(float) + 64);
    return ResultOf(task, y.size(), [&](const MatMulTask& copy) {
      ops.mat_mul_int8(copy, rows, 0, task.rows, 0, task.w.out, scratch.as<float>());
    });
  }
  std::vector<float> Run(const Compute& compute) {
    return ResultOf(task, y.size(), [&](const MatMulTask& copy) { compute.MatMul(copy); });
  }
  // The same task with weights of float32.
  std::vector<float> RunUpcast(const Compute& compute, DType x_dtype) {
    const int64_t rows = task.w.layout == WeightLayout::kOutIn ? task.w.out : task.w.in;
    std::vector<float> upcast(static_cast<size_t>(rows * task.w.stride));
    ConvertToFloat(w.data(), task.w.dtype, rows * task.w.stride, upcast.data());
    return ResultOf(task, y.size(), [&](MatMulTask& copy) {
      copy.x.dtype = x_dtype;
      copy.w.data = reinterpret_cast<const std::byte*>(upcast.data());
      copy.w.dtype = DType::kF32;
      compute.MatMul(copy);
    });
  }

  std::vector<float> x_values;
  std::vector<std::byte> x, w, bias;
  std::vector<int32_t> gather;
  std::vector<float> y;
  MatMulTask task;
};

std::string Shape(DType dtype, int64_t m, int64_t n, int64_t k) {
  return std::string(Name(dtype)) + " " + std::to_string(m) + "x" + std::to_string(n) + "x" +
         std::to_string(k);
}

// Against the dequantisation of the gguf package (0.17), over the same made-up bytes.
TEST(Blocks, SayWhatGgufSays) {
  struct Golden {
    DType dtype;
    std::vector<size_t> scales;
    double sum;  // Σ w[i]·(i % 13 + 1)
    float first, middle, late;
  };
  const Golden goldens[] = {
      {DType::kQ8_0, {0}, 626.7955932617188, 0x1.ep+1, 0x1.1e408p+3, -0x1.6fdp-1},
      {DType::kQ4_0, {0}, -259.016357421875, 0x1p-2, -0x1.1bb8p-1, 0x1.264p-4},
      {DType::kMXFP4, {}, -54.58203125, 0x1.8p-6, 0x1p-6, 0x1p-8},
      {DType::kQ4K, {0, 2}, 32398.2841796875, 0x1.bcd5p+2, 0x1.c7a8p-1, 0x1.9f0f8p+4},
      {DType::kQ5K, {0, 2}, 82655.33410644531, 0x1.d41aap+5, 0x1.a3d4p+0, -0x1.5fb4p+1},
      {DType::kQ6K, {208}, 10547.569946289062, 0x1.584p+6, -0x1.88p+5, 0x1.b8c7p+6},
  };
  for (const Golden& g : goldens) {
    const size_t bytes = static_cast<size_t>(BlockOf(g.dtype).bytes);
    std::vector<std::byte> raw(static_cast<size_t>(BytesOf(g.dtype, 512)));
    for (size_t i = 0; i < raw.size(); ++i) raw[i] = std::byte((i * i * 31 + i * 7 + 11) % 251);
    for (size_t b = 0; b < raw.size() / bytes; ++b) {
      for (size_t j = 0; j < g.scales.size(); ++j) {
        raw[b * bytes + g.scales[j]] = std::byte((17 * b + j) % 256);
        raw[b * bytes + g.scales[j] + 1] = std::byte(0x2c + (b + j) % 3);
      }
      if (g.dtype == DType::kMXFP4) raw[b * bytes] = std::byte(120 + b % 9);
    }
    std::vector<float> w(512), reference(512);
    ConvertToFloat(raw.data(), g.dtype, 512, w.data());
    ReferenceFor(Isa::kPortable).convert_to_float(raw.data(), g.dtype, 512, reference.data());
    EXPECT_EQ(FirstDifference(w, reference), -1) << Name(g.dtype);
    EXPECT_EQ(w[1], g.first) << Name(g.dtype);
    EXPECT_EQ(w[49], g.middle) << Name(g.dtype);
    EXPECT_EQ(w[300], g.late) << Name(g.dtype);
    double sum = 0;
    for (size_t i = 0; i < 512; ++i) sum += w[i] * static_cast<double>(i % 13 + 1);
    EXPECT_NEAR(sum, g.sum, 1e-6) << Name(g.dtype);
  }
}

class Int8Test : public testing::TestWithParam<Isa> {};

TEST_P(Int8Test, EqualsTheReferenceBitForBit) {
  const Ops &ops = OpsFor(GetParam()), &reference = ReferenceFor(GetParam());
  if (GetParam() == Isa::kPortable) GTEST_SKIP() << "it is the reference";
  uint32_t seed = 1;
  std::mt19937 random(4);
  auto check = [&](DType dtype, int64_t m, int64_t n, int64_t blocks, bool extras) {
    const int64_t k = blocks * BlockOf(dtype).elements;
    Int8Problem problem(dtype, m, n, k, extras, seed++);
    EXPECT_EQ(FirstDifference(problem.Run(ops), problem.Run(reference)), -1)
        << Shape(dtype, m, n, k) << (extras ? " extras" : "");
  };
  for (DType dtype : kBlocked) {
    const int64_t most = BlockOf(dtype).elements == 32 ? 20 : 4;
    for (int64_t m = 1; m <= 70; ++m) {
      check(dtype, m, 1 + random() % 40, 1 + static_cast<int64_t>(random()) % most, m % 2 == 0);
    }
    check(dtype, 130, 37, most, false);
    check(dtype, 300, 17, most - 1, true);
  }
}

TEST_P(Int8Test, RowsAreQuantizedAsTheReferenceDoes) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  constexpr int64_t kIn = 32 * 12;
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::vector<float> values = RandomFloats(kIn, seed, std::exp2(static_cast<float>(seed) - 25));
    for (int i = 0; i < 32; ++i) {
      values[32 + i] = 0;
      values[64 + i] = static_cast<float>(i) * 0x1p-110f;
      values[96 + i] = static_cast<float>(i - 16) / 2;  // ties
      values[160 + i] *= 0x1p100f;
    }
    values[40] = nan;
    values[130] = seed % 2 == 0 ? inf : -inf;
    values[200] = -nan;
    const std::vector<std::byte> x = Stored(values, DType::kBF16);
    std::vector<std::byte> rows[2];
    for (int i = 0; i < 2; ++i) {
      rows[i].resize(static_cast<size_t>(QuantizedRows::RowBytes(kIn)));
      const Ops& ops = i == 0 ? OpsFor(GetParam()) : ReferenceFor(Isa::kPortable);
      ops.quantize(reinterpret_cast<const bf16*>(x.data()), kIn,
                   QuantizedRows{rows[i].data(), kIn}.row(0));
    }
    const QuantizedRow a = QuantizedRows{rows[0].data(), kIn}.row(0);
    const QuantizedRow b = QuantizedRows{rows[1].data(), kIn}.row(0);
    EXPECT_EQ(std::memcmp(a.q, b.q, kIn), 0) << seed;
    for (int i = 0; i < kIn / 32; ++i) {
      EXPECT_TRUE(SameBits(a.scale[i], b.scale[i])) << seed << " " << i;
      EXPECT_EQ(a.nsum[i], b.nsum[i]) << seed << " " << i;
      EXPECT_EQ(a.nhalf[i], b.nhalf[i]) << seed << " " << i;
      EXPECT_TRUE(SameBits(a.nmin[i], b.nmin[i])) << seed << " " << i;
    }
    EXPECT_TRUE(std::isnan(b.scale[1]) && std::isnan(b.scale[4]) && std::isnan(b.scale[6]));
    EXPECT_EQ(b.scale[2], 0);
  }
}

TEST_P(Int8Test, ARowIsTheSameInAnyCompany) {
  ThreadPool pool(1);
  const Compute compute(GetParam(), pool);
  for (DType dtype : kBlocked) {
    const int64_t k = 2 * BlockOf(dtype).elements;
    for (int64_t rows : {2, 5, 16, 33, 70}) {
      Int8Problem all(dtype, rows, 35, k, false, 5);
      const std::vector<float> together = all.Run(compute);
      for (int64_t m = 0; m < rows; ++m) {
        const int32_t row = static_cast<int32_t>(m);
        MatMulTask one = all.task;
        one.rows = 1;
        one.gather = &row;
        std::vector<float> alone(35);
        one.y = alone.data();
        compute.MatMul(one);
        ASSERT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + m * 35, SameBits))
            << Shape(dtype, rows, 35, k) << " row " << m;
      }
    }
  }
}

// Tasks of one x and of their own, blocked and plain, in one call.
TEST_P(Int8Test, ThreadsAndOtherTasksChangeNothing) {
  std::vector<Int8Problem> problems;
  for (int64_t i = 0; i < 12; ++i) {
    problems.emplace_back(kBlocked[i % 6], i == 4 ? 0 : 1 + i * 40 % 150, 65, 512, i % 2, i);
  }
  for (size_t i : {6, 8}) {
    problems[i].task.x = problems[2].task.x;
    problems[i].task.rows = std::min(problems[i].task.rows, problems[2].task.rows);
  }
  std::vector<MatMulTask> tasks;
  for (Int8Problem& p : problems) tasks.push_back(p.task);
  std::vector<std::vector<float>> expected;
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    const Compute compute(threads == 1 ? Isa::kPortable : GetParam(), pool);
    for (Int8Problem& p : problems) std::ranges::fill(p.y, -77.0f);
    compute.MatMul(tasks);
    for (size_t i = 0; i < problems.size(); ++i) {
      if (threads == 1) expected.push_back(problems[i].y);
      EXPECT_EQ(FirstDifference(problems[i].y, expected[i]), -1) << threads << " threads, " << i;
    }
  }
}

TEST_P(Int8Test, OtherProductsAreThoseOfUpcastWeights) {
  ThreadPool pool(2);
  const Compute compute(GetParam(), pool);
  for (DType dtype : kBlocked) {
    const int64_t block = BlockOf(dtype).elements;
    for (int64_t rows : {1, 3, 20, 100}) {
      for (bool extras : {false, true}) {
        Int8Problem f32(dtype, rows, 37, 2 * block, extras, 3, DType::kF32);
        EXPECT_EQ(FirstDifference(f32.Run(compute), f32.RunUpcast(compute, DType::kF32)), -1)
            << Shape(dtype, rows, 37, 2 * block);
        for (DType x : {DType::kF32, DType::kBF16}) {
          Int8Problem in_out(dtype, rows, 3 * block, 50, extras, 9, x, WeightLayout::kInOut);
          EXPECT_EQ(FirstDifference(in_out.Run(compute), in_out.RunUpcast(compute, x)), -1)
              << Shape(dtype, rows, 3 * block, 50) << " in-out";
        }
      }
    }
  }
}

// A rounding of x is off by half a step of its piece, s / 2.
TEST_P(Int8Test, IsNearTheTruth) {
  for (DType dtype : kBlocked) {
    constexpr int64_t kIn = 1024, kOut = 20;
    Int8Problem p(dtype, 3, kOut, kIn, false, 11);
    const std::vector<float> y = p.Run(OpsFor(GetParam()));
    std::vector<float> w(kOut * kIn);
    ConvertToFloat(p.w.data(), dtype, kOut * kIn, w.data());
    for (int64_t m = 0; m < 3; ++m) {
      for (int64_t n = 0; n < kOut; ++n) {
        double truth = 0, tolerance = 1e-6;
        for (int64_t b = 0; b < kIn; b += 32) {
          double largest = 0, weights = 0, norm = 0;
          for (int64_t k = b; k < b + 32; ++k) {
            const double x = At(p.x.data(), DType::kBF16, m * kIn + k);
            truth += x * w[n * kIn + k];
            largest = std::max(largest, std::fabs(x));
            weights += std::fabs(w[n * kIn + k]);
            norm += std::fabs(x * w[n * kIn + k]);
          }
          tolerance += weights * largest / 127 * 0.5001 + norm * 1e-5;
        }
        EXPECT_NEAR(y[static_cast<size_t>(m * kOut + n)], truth, tolerance) << Name(dtype);
      }
    }
  }
}

TEST_P(Int8Test, ANanMakesItsRowNan) {
  for (DType dtype : kBlocked) {
    const int64_t k = 2 * BlockOf(dtype).elements;
    Int8Problem p(dtype, 20, 33, k, false, 21);
    const std::vector<float> clean = p.Run(OpsFor(GetParam()));
    std::vector<float> values = p.x_values;
    values[static_cast<size_t>(2 * k + k - 1)] = std::numeric_limits<float>::quiet_NaN();
    values[static_cast<size_t>(17 * k + 7)] = std::numeric_limits<float>::infinity();
    p.x = Stored(values, DType::kBF16);
    p.task.x.data = p.x.data();
    const std::vector<float> y = p.Run(OpsFor(GetParam()));
    for (int64_t m = 0; m < 20; ++m) {
      for (int64_t n = 0; n < 33; ++n) {
        const size_t i = static_cast<size_t>(m * 33 + n);
        EXPECT_TRUE(m == 2 || m == 17 ? std::isnan(y[i]) : SameBits(y[i], clean[i]))
            << Name(dtype) << " row " << m;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, Int8Test, testing::ValuesIn(SupportedIsas()),
                         [](const auto& info) { return std::string(Name(info.param)); });

}  // namespace
}  // namespace switchyard::kernels
