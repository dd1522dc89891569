#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "services/kernels/kernels.h"
#include "services/kernels/ops.h"
#include "services/tensor/buffer.h"
#include "tests/support/isa_name.h"
#include "tests/unit/services/kernels/random_data.h"

namespace switchyard::kernels {
namespace {

struct Dtypes {
  DType x, w;
  WeightLayout layout;
};

constexpr Dtypes kDtypes[] = {
    {DType::kF32, DType::kF32, WeightLayout::kOutIn},
    {DType::kF32, DType::kBF16, WeightLayout::kOutIn},
    {DType::kF32, DType::kF16, WeightLayout::kOutIn},
    {DType::kBF16, DType::kF32, WeightLayout::kOutIn},
    {DType::kBF16, DType::kBF16, WeightLayout::kOutIn},
    {DType::kBF16, DType::kF16, WeightLayout::kOutIn},
    {DType::kF32, DType::kF32, WeightLayout::kInOut},
    {DType::kF32, DType::kBF16, WeightLayout::kInOut},
    {DType::kF32, DType::kF16, WeightLayout::kInOut},
    {DType::kBF16, DType::kF32, WeightLayout::kInOut},
    {DType::kBF16, DType::kBF16, WeightLayout::kInOut},
    {DType::kBF16, DType::kF16, WeightLayout::kInOut},
};

// A task with its operands: strides beyond the width, unaligned starts, optionally gather and bias.
struct Problem {
  Problem(const Dtypes& types, int64_t rows, int64_t out, int64_t in, bool extras, uint32_t seed) {
    const size_t offset = extras ? 3 : 0;
    const int64_t slack = extras ? 5 : 0;
    const bool out_in = types.layout == WeightLayout::kOutIn;
    const int64_t stored_rows = out_in ? out : in, width = out_in ? in : out;
    const int64_t x_rows = extras ? rows + 4 : rows;
    x_values = RandomFloats(x_rows * (in + slack), seed);
    x = Stored(x_values, types.x, offset);
    w = Stored(RandomFloats(stored_rows * (width + slack), seed + 1, 0.05f), types.w, offset);
    bias = Stored(RandomFloats(out, seed + 2), types.w);
    for (int64_t m = 0; m < rows; ++m) gather.push_back(static_cast<int32_t>((m * 7 + 3) % x_rows));
    y.assign(static_cast<size_t>(rows * (out + slack)), -77.0f);
    task = {
        .x = {x.data() + offset * SizeOf(types.x), types.x, in + slack},
        .rows = rows,
        .gather = extras ? gather.data() : nullptr,
        .w = {w.data() + offset * SizeOf(types.w), types.w, types.layout, out, in, width + slack},
        .y = y.data(),
        .y_stride = out + slack};
    if (extras) task.bias = {bias.data(), types.w, out};
  }

  int64_t XRow(int64_t m) const { return task.gather != nullptr ? task.gather[m] : m; }
  float X(int64_t m, int64_t k) const {
    return At(static_cast<const std::byte*>(task.x.data), task.x.dtype,
              XRow(m) * task.x.stride + k);
  }
  float W(int64_t n, int64_t k) const {
    const bool out_in = task.w.layout == WeightLayout::kOutIn;
    return At(task.w.data, task.w.dtype, out_in ? n * task.w.stride + k : k * task.w.stride + n);
  }
  std::vector<float> Run(decltype(Ops::mat_mul) mat_mul) {
    AlignedBuffer scratch(static_cast<size_t>(MatMulScratchFloats(task)) * sizeof(float));
    return ResultOf(task, y.size(), [&](const MatMulTask& copy) {
      mat_mul(copy, 0, task.rows, 0, task.w.out, scratch.as<float>());
    });
  }
  std::vector<float> Run(const Compute& compute) {
    return ResultOf(task, y.size(), [&](const MatMulTask& copy) { compute.MatMul(copy); });
  }

  std::vector<float> x_values;
  std::vector<std::byte> x, w, bias;
  std::vector<int32_t> gather;
  std::vector<float> y;
  MatMulTask task;
};

std::string Describe(Isa isa, const Dtypes& t, int64_t m, int64_t n, int64_t k) {
  return std::string(Name(isa)) + " x " + std::string(Name(t.x)) + " w " + std::string(Name(t.w)) +
         (t.layout == WeightLayout::kOutIn ? " out-in " : " in-out ") + std::to_string(m) + "x" +
         std::to_string(n) + "x" + std::to_string(k);
}

class MatMulTest : public testing::TestWithParam<Isa> {};

TEST_P(MatMulTest, EqualsTheReferenceBitForBit) {
  const Ops& ops = OpsFor(GetParam());
  const Ops& reference = ReferenceFor(GetParam());
  uint32_t seed = 1;
  auto check = [&](const Dtypes& types, int64_t m, int64_t n, int64_t k, bool extras) {
    Problem problem(types, m, n, k, extras, seed++);
    EXPECT_EQ(FirstDifference(problem.Run(ops.mat_mul), problem.Run(reference.mat_mul)), -1)
        << Describe(GetParam(), types, m, n, k) << (extras ? " extras" : "");
  };
  for (const Dtypes& types : kDtypes) {
    for (int64_t k = 1; k <= 70; ++k) check(types, 1 + k % 7, 1 + k % 5, k, k % 2 == 0);
    for (int64_t m : {1, 2, 3, 4, 5, 8, 13, 16, 17, 36, 130}) {
      check(types, m, 37, 192, false);
      check(types, m, 64, 33, true);
    }
    check(types, 3, 129, 513, true);
    check(types, 9, 31, 2049, false);
  }
}

TEST_P(MatMulTest, ARowIsTheSameInAnyCompany) {
  ThreadPool pool(1);
  const Compute compute(GetParam(), pool);
  for (const Dtypes& types : kDtypes) {
    for (int64_t rows : {2, 5, 16, 33, 70}) {
      Problem all(types, rows, 35, 100, false, 5);
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
            << Describe(GetParam(), types, rows, 35, 100) << " row " << m;
      }
    }
  }
}

TEST_P(MatMulTest, ThreadsAndOtherTasksChangeNothing) {
  const Dtypes types = {DType::kBF16, DType::kBF16, WeightLayout::kOutIn};
  std::vector<Problem> problems;
  for (int64_t i = 0; i < 9; ++i) problems.emplace_back(types, 1 + i * 40 % 150, 65, 384, i % 2, i);
  problems.emplace_back(types, 0, 65, 384, false, 99);  // an expert without rows
  std::vector<std::vector<float>> expected;
  for (Problem& p : problems) expected.push_back(p.Run(OpsFor(GetParam()).mat_mul));
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    const Compute compute(GetParam(), pool);
    std::vector<MatMulTask> tasks;
    for (Problem& p : problems) tasks.push_back(p.task);
    compute.MatMul(tasks);
    for (size_t i = 0; i < problems.size(); ++i) {
      EXPECT_EQ(FirstDifference(problems[i].y, expected[i]), -1) << threads << " threads, " << i;
      std::ranges::fill(problems[i].y, -77.0f);
    }
  }
}

// |error| <= γ·Σ|x·w|, γ growing with the longest chain of roundings.
TEST_P(MatMulTest, IsNearTheTruth) {
  for (const Dtypes& types : kDtypes) {
    Problem p(types, 3, 20, 1000, true, 11);
    const std::vector<float> y = p.Run(OpsFor(GetParam()).mat_mul);
    const double chain = types.layout == WeightLayout::kInOut ? 1000 : 1000 / 16 + 5;
    for (int64_t m = 0; m < 3; ++m) {
      for (int64_t n = 0; n < 20; ++n) {
        double truth = At(p.bias.data(), types.w, n), norm = std::fabs(truth);
        for (int64_t k = 0; k < 1000; ++k) {
          truth += double{p.X(m, k)} * p.W(n, k);
          norm += std::fabs(double{p.X(m, k)} * p.W(n, k));
        }
        const double tolerance = (chain + 2) * std::numeric_limits<float>::epsilon() / 2 * norm;
        EXPECT_NEAR(y[static_cast<size_t>(m * p.task.y_stride + n)], truth, tolerance)
            << Describe(GetParam(), types, 3, 20, 1000);
      }
    }
  }
}

TEST_P(MatMulTest, NanAndInfStayInTheirRow) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const Dtypes& types : kDtypes) {
    Problem p(types, 6, 33, 50, false, 21);
    const std::vector<float> clean = p.Run(OpsFor(GetParam()).mat_mul);
    std::vector<float> values = p.x_values;
    values[2 * 50 + 49] = std::numeric_limits<float>::quiet_NaN();
    values[4 * 50 + 7] = inf;
    const std::vector<std::byte> x = Stored(values, types.x);
    p.task.x.data = x.data();
    const std::vector<float> y = p.Run(OpsFor(GetParam()).mat_mul);
    for (int64_t m = 0; m < 6; ++m) {
      for (int64_t n = 0; n < 33; ++n) {
        const size_t i = static_cast<size_t>(m * 33 + n);
        if (m == 2) {
          EXPECT_TRUE(std::isnan(y[i]));
        } else if (m == 4) {
          EXPECT_EQ(y[i], p.W(n, 7) > 0 ? inf : -inf);
        } else {
          EXPECT_TRUE(SameBits(y[i], clean[i]));
        }
      }
    }
  }
}

TEST_P(MatMulTest, SubnormalsFollowTheClass) {
  for (const Dtypes& types : kDtypes) {
    Problem p(types, 2, 17, 40, false, 31);
    std::vector<float> values = p.x_values;
    for (float& v : values) v *= 0x1p-124f;  // products with 0.05-sized weights are subnormal
    const std::vector<std::byte> x = Stored(values, types.x);
    p.task.x.data = x.data();
    EXPECT_EQ(
        FirstDifference(p.Run(OpsFor(GetParam()).mat_mul), p.Run(ReferenceFor(GetParam()).mat_mul)),
        -1)
        << Describe(GetParam(), types, 2, 17, 40);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, MatMulTest, testing::ValuesIn(SupportedIsas()), IsaName);

TEST(MatMulClasses, FmaTargetsShareOneReference) {
  EXPECT_EQ(&ReferenceFor(Isa::kPortable), &ReferenceFor(Isa::kAvx2));
  EXPECT_EQ(&ReferenceFor(Isa::kPortable), &ReferenceFor(Isa::kAvx512));
  EXPECT_EQ(&ReferenceFor(Isa::kPortable), &ReferenceFor(Isa::kNeon));
  EXPECT_EQ(&ReferenceFor(Isa::kPortable), &ReferenceFor(Isa::kNeonDotprod));
  EXPECT_NE(&ReferenceFor(Isa::kPortable), &ReferenceFor(Isa::kAvx512Bf16));
  EXPECT_NE(&ReferenceFor(Isa::kPortable), &ReferenceFor(Isa::kAmx));
  EXPECT_NE(&ReferenceFor(Isa::kAvx512Bf16), &ReferenceFor(Isa::kAmx));
  EXPECT_EQ(ArithmeticClass(DType::kF32, Isa::kAvx512Bf16), "f32");
  EXPECT_EQ(ArithmeticClass(DType::kBF16, Isa::kAvx2), "bf16-fma");
  EXPECT_EQ(ArithmeticClass(DType::kBF16, Isa::kNeon), "bf16-fma");
  EXPECT_EQ(ArithmeticClass(DType::kBF16, Isa::kNeonDotprod), "bf16-fma");
  EXPECT_EQ(ArithmeticClass(DType::kBF16, Isa::kAvx512Bf16), "bf16-avx512bf16");
  EXPECT_EQ(ArithmeticClass(DType::kBF16, Isa::kAmx), "bf16-amx");
}

TEST(ChooseIsa, TakesNamesAndAuto) {
  EXPECT_EQ(ChooseIsa("auto").value(), SupportedIsas().back());
  for (Isa isa : SupportedIsas()) EXPECT_EQ(ChooseIsa(Name(isa)).value(), isa);
  const absl::Status status = ChooseIsa("avx9000").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("portable"), absl::string_view::npos);
}

}  // namespace
}  // namespace switchyard::kernels
