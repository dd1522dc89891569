// FP8 weights with scales beside them.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "services/kernels/kernels.h"
#include "services/kernels/ops.h"
#include "services/tensor/buffer.h"
#include "tests/support/isa_name.h"
#include "tests/unit/services/kernels/random_data.h"

namespace switchyard::kernels {
namespace {

// A matrix of any codes but NaNs, with scales for blocks.
struct F8Matrix {
  F8Matrix(WeightLayout layout, int64_t rows, int64_t columns, int64_t group_rows,
           int64_t group_columns, uint32_t seed) {
    std::mt19937 random(seed);
    const int64_t stride = columns + 5, first_row = 3;
    codes.resize(static_cast<size_t>(rows * stride));
    for (f8e4m3& c : codes) {
      c.bits = static_cast<uint8_t>(random());
      if ((c.bits & 0x7f) == 0x7f) c.bits ^= 1;
    }
    const int64_t down = (first_row + rows) / group_rows + 1, across = columns / group_columns + 1;
    for (int64_t i = 0; i < down * across; ++i) {
      scales.push_back(0.001f + 0.00001f * static_cast<float>(random() % 256));
    }
    const bool out_in = layout == WeightLayout::kOutIn;
    view = {.data = reinterpret_cast<const std::byte*>(codes.data()),
            .dtype = DType::kF8E4M3,
            .layout = layout,
            .out = out_in ? rows : columns,
            .in = out_in ? columns : rows,
            .stride = stride};
    view.scales = {.data = reinterpret_cast<const std::byte*>(scales.data()),
                   .group_rows = group_rows,
                   .group_columns = group_columns,
                   .row_stride = across,
                   .column_stride = 1,
                   .first_row = first_row};
  }

  std::vector<f8e4m3> codes;
  std::vector<float> scales;
  WeightView view;
};

struct F8Problem {
  F8Problem(int64_t rows, int64_t out, int64_t in, bool extras, uint32_t seed,
            DType x_dtype = DType::kBF16, WeightLayout layout = WeightLayout::kOutIn,
            int64_t group_rows = 48, int64_t group_columns = 128)
      : w(layout, layout == WeightLayout::kOutIn ? out : in,
          layout == WeightLayout::kOutIn ? in : out, group_rows, group_columns, seed + 1) {
    const int64_t slack = extras ? 7 : 0, x_rows = extras ? rows + 3 : rows;
    x = Stored(RandomFloats(x_rows * (in + slack), seed), x_dtype);
    bias = Stored(RandomFloats(out, seed + 2), DType::kF32);
    for (int64_t m = 0; m < rows; ++m) gather.push_back(static_cast<int32_t>((m * 7 + 3) % x_rows));
    size = static_cast<size_t>(rows * (out + slack));
    task = {.x = {x.data(), x_dtype, in + slack},
            .rows = rows,
            .gather = extras ? gather.data() : nullptr,
            .w = w.view,
            .y_stride = out + slack};
    if (extras) task.bias = {bias.data(), DType::kF32, out};
  }

  std::vector<float> Run(const Compute& compute) {
    return ResultOf(task, size, [&](const MatMulTask& copy) { compute.MatMul(copy); });
  }
  std::vector<float> RunReference(Isa isa) {
    return ResultOf(task, size, [&](const MatMulTask& copy) {
      ReferenceFor(isa).mat_mul_f8(copy, 0, task.rows, 0, task.w.out);
    });
  }

  F8Matrix w;
  std::vector<std::byte> x, bias;
  std::vector<int32_t> gather;
  size_t size;
  MatMulTask task;
};

class F8Test : public testing::TestWithParam<Isa> {};

TEST_P(F8Test, EqualsTheReferenceBitForBit) {
  uint32_t seed = 1;
  std::mt19937 random(4);
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    const Compute compute(GetParam(), pool);
    for (int64_t m : {1, 2, 3, 5, 16, 17, 40, 130, 300}) {
      for (int64_t in : {1, 31, 64, 128, 129, 300, 512}) {
        const int64_t out = 1 + static_cast<int64_t>(random()) % 150;
        F8Problem p(m, out, in, m % 2 == 0, seed++);
        EXPECT_EQ(FirstDifference(p.Run(compute), p.RunReference(GetParam())), -1)
            << m << "x" << out << "x" << in << ", " << threads << " threads";
      }
    }
  }
}

TEST_P(F8Test, EveryCodeIsExact) {
  std::vector<f8e4m3> codes;
  for (int i = 0; i < 256; ++i) {
    if ((i & 0x7f) != 0x7f) codes.push_back({static_cast<uint8_t>(i)});
  }
  const int64_t n = static_cast<int64_t>(codes.size());
  std::vector<bf16> out(codes.size());
  for (int64_t first : {0, 1, 20}) {
    OpsFor(GetParam()).f8_to_bf16(codes.data() + first, n - first, out.data());
    for (int64_t i = first; i < n; ++i) {
      const float value = ToFloat(codes[static_cast<size_t>(i)]);
      EXPECT_TRUE(SameBits(ToFloat(out[static_cast<size_t>(i - first)]), value)) << i;
    }
  }
}

TEST_P(F8Test, ARowIsTheSameInAnyCompany) {
  ThreadPool pool(1);
  const Compute compute(GetParam(), pool);
  F8Problem p(140, 70, 300, false, 5);
  const std::vector<float> together = p.Run(compute);
  for (int64_t m = 0; m < 140; ++m) {
    const std::vector<float> alone = RowAlone(compute, p.task, m);
    ASSERT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + m * 70, SameBits)) << m;
  }
}

TEST_P(F8Test, OtherProductsAreThoseOfUpcastWeights) {
  ThreadPool pool(2);
  const Compute compute(GetParam(), pool);
  struct Case {
    DType x;
    WeightLayout layout;
  };
  for (const Case& c :
       {Case{DType::kF32, WeightLayout::kOutIn}, Case{DType::kF32, WeightLayout::kInOut},
        Case{DType::kBF16, WeightLayout::kInOut}}) {
    for (int64_t rows : {1, 3, 20}) {
      F8Problem p(rows, 300, 150, rows == 3, 9, c.x, c.layout);
      const WeightView& w = p.w.view;
      std::vector<float> upcast(static_cast<size_t>(w.out * w.in));
      for (int64_t r = 0; r < w.rows(); ++r) {
        for (int64_t k = 0; k < w.columns(); ++k) {
          upcast[static_cast<size_t>(r * w.columns() + k)] =
              ToFloat(p.w.codes[static_cast<size_t>(r * w.stride + k)]) *
              p.w.scales[static_cast<size_t>((3 + r) / 48 * w.scales.row_stride + k / 128)];
        }
      }
      const std::vector<float> expected = ResultOf(p.task, p.size, [&](MatMulTask& copy) {
        copy.w = {.data = reinterpret_cast<const std::byte*>(upcast.data()),
                  .dtype = DType::kF32,
                  .layout = w.layout,
                  .out = w.out,
                  .in = w.in,
                  .stride = w.columns()};
        compute.MatMul(copy);
      });
      EXPECT_EQ(FirstDifference(p.Run(compute), expected), -1) << rows;
    }
  }
}

// A scale for each row is a block of one row and all columns.
TEST_P(F8Test, ScalesOfWholeRows) {
  ThreadPool pool(1);
  const Compute compute(GetParam(), pool);
  F8Problem p(4, 65, 300, false, 12, DType::kBF16, WeightLayout::kOutIn, 1, 300);
  const std::vector<float> y = p.Run(compute);
  EXPECT_EQ(FirstDifference(y, p.RunReference(GetParam())), -1);
  for (int64_t n = 0; n < 65; ++n) {
    double truth = 0, norm = 0;
    for (int64_t k = 0; k < 300; ++k) {
      const double product = static_cast<double>(At(p.x.data(), DType::kBF16, k)) *
                             ToFloat(p.w.codes[static_cast<size_t>(n * 305 + k)]) *
                             p.w.scales[static_cast<size_t>((3 + n) * p.w.view.scales.row_stride)];
      truth += product;
      norm += std::fabs(product);
    }
    EXPECT_NEAR(y[static_cast<size_t>(n)], truth, norm * 1e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, F8Test, testing::ValuesIn(SupportedIsas()), IsaName);

}  // namespace
}  // namespace switchyard::kernels
