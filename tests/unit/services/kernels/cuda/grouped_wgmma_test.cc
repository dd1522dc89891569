// The grouped product of matrices by wgmma against plain loops in float64, run by
// tests/support/simt.
#include "services/kernels/cuda/grouped_wgmma.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "services/kernels/cuda/quantize_rows.cuh"
#include "tests/unit/services/kernels/cuda/tiled_weights.h"

namespace switchyard::cuda {
namespace {

// Rows of x: bf16, and those as e4m3 with scales.
class Rows {
 public:
  Rows(int rows, int columns, uint32_t seed)
      : columns(columns),
        stride((columns + 15) / 8 * 8),
        groups((columns + 127) / 128),
        values(static_cast<size_t>(rows * stride), uint16_t{0x7fc0}),  // NaN behind the columns
        scales(static_cast<size_t>(rows * groups), -1) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int r = 0; r < rows; ++r) {
      const float size = std::ldexp(1.0f, r % 9 - 4);
      for (int k = 0; k < columns; ++k) {
        values[static_cast<size_t>(r * stride + k)] =
            static_cast<uint16_t>(ToBf16(size * normal(random)));
      }
    }
    bytes.resize(static_cast<size_t>(rows * groups * 128) / 16 + 1);
    QuantizeArgs args{.x = values.data(),
                      .x_stride = stride,
                      .rows = rows,
                      .columns = columns,
                      .out = Codes(),
                      .out_stride = groups * 128,
                      .scales = scales.data(),
                      .scale_stride = groups};
    const int blocks = (rows * groups + kQuantizeGroupsABlock - 1) / kQuantizeGroupsABlock;
    simt::Launch({static_cast<unsigned>(blocks)}, {kQuantizeThreads}, 0,
                 [&] { QuantizeRows(args); });
  }
  uint8_t* Codes() { return reinterpret_cast<uint8_t*>(bytes.data()); }
  double Exact(int row, int k) const {
    return static_cast<double>(FromBf16(values[static_cast<size_t>(row * stride + k)]));
  }
  double Quantized(int row, int k) {
    return E4M3(Codes()[row * groups * 128 + k]) *
           static_cast<double>(scales[static_cast<size_t>(row * groups + k / 128)]);
  }

  const int columns, stride, groups;
  std::vector<uint16_t> values;
  std::vector<uint4> bytes;
  std::vector<float> scales;
};

constexpr int kTokens = 37;

template <Format kFormat>
class Problem {
 public:
  Problem(const TileShape& shape, std::vector<int> counts)
      : shape_(shape), counts_(std::move(counts)), rows_(kTokens, shape.columns, 7) {
    std::mt19937 random(11);
    bias_.resize(static_cast<size_t>(shape.row_tiles() * kTileRows));
    for (float& b : bias_) b = static_cast<float>(random() % 100) * 0.01f;
    pairs_ = std::accumulate(counts_.begin(), counts_.end(), 0);
    weights_.reserve(counts_.size());
    for (size_t e = 0; e < counts_.size(); ++e) {
      weights_.emplace_back(shape_, static_cast<uint32_t>(e + 1));
      matrices_.push_back({weights_[e].tiles(), e % 2 == 1 ? bias_.data() : nullptr});
    }
    for (int p = 0; p < pairs_; ++p) gather_.push_back(static_cast<int32_t>(random() % kTokens));
  }

  // Every run of kRows rows, or as many as are left, by so many blocks.
  template <int kRows, Epilogue kEpilogue = Epilogue::kStore, typename Y = float>
  std::vector<Y> Compute(unsigned blocks) {
    std::vector<RowRun> runs;
    int first = 0;
    for (size_t e = 0; e < counts_.size(); ++e) {
      for (int at = 0; at < counts_[e]; at += kRows) {
        runs.push_back({static_cast<int32_t>(e), first + at, std::min(kRows, counts_[e] - at)});
      }
      first += counts_[e];
    }
    std::vector<Y> y(static_cast<size_t>(pairs_ * shape_.rows), static_cast<Y>(777));
    const auto run_count = static_cast<int32_t>(runs.size());
    constexpr bool kBytes = kFormat == Format::kE4M3;
    const GroupedArgs args{
        .product = {.matrices = matrices_.data(),
                    .runs = runs.data(),
                    .shape = shape_,
                    .x = kBytes ? reinterpret_cast<const uint16_t*>(rows_.Codes())
                                : rows_.values.data(),
                    .x_stride = kBytes ? rows_.groups * 128 : rows_.stride,
                    .gather = gather_.data(),
                    .y = y.data(),
                    .y_stride = shape_.rows,
                    .activation = {}},
        .run_count = &run_count,
        .x_scales = rows_.scales.data(),
        .x_scale_stride = rows_.groups};
    simt::Launch({blocks}, {kGroupedThreads}, GroupedStage<kFormat, kRows>::kSharedBytes,
                 [&] { GroupedWgmma<kFormat, kRows, kEpilogue>(args); });
    return y;
  }

  void Check(const std::vector<float>& y) {
    size_t pair = 0;
    for (size_t e = 0; e < counts_.size(); ++e) {
      for (int i = 0; i < counts_[e]; ++i, ++pair) {
        for (int n = 0; n < shape_.rows; ++n) {
          const double bias = e % 2 == 1 ? static_cast<double>(bias_[static_cast<size_t>(n)]) : 0;
          double sum = bias, size = bias;
          for (int k = 0; k < shape_.columns; ++k) {
            const int row = gather_[pair];
            const double x =
                kFormat == Format::kE4M3 ? rows_.Quantized(row, k) : rows_.Exact(row, k);
            sum += weights_[e].At(n, k) * x, size += std::fabs(weights_[e].At(n, k) * x);
          }
          ASSERT_NEAR(y[pair * static_cast<size_t>(shape_.rows) + static_cast<size_t>(n)], sum,
                      1e-6 * size + 1e-30)
              << "expert " << e << ", pair " << pair << ", output " << n;
        }
      }
    }
  }

 private:
  const TileShape shape_;
  const std::vector<int> counts_;
  Rows rows_;
  int pairs_ = 0;
  std::vector<float> bias_;
  std::vector<TiledWeights> weights_;
  std::vector<Matrix> matrices_;
  std::vector<int32_t> gather_;
};

constexpr TileShape Bf16(int rows, int columns) {
  return {.format = Format::kBf16, .rows = rows, .columns = columns};
}
constexpr TileShape E4M3Blocks(int rows, int columns) {
  return {
      .format = Format::kE4M3, .rows = rows, .columns = columns, .group = 128, .group_rows = 128};
}

TEST(GroupedWgmma, Bf16IsRightAndTheSameForEveryNumberOfRows) {
  Problem<Format::kBf16> problem(Bf16(200, 328), {1, 0, 19, 8, 40});
  const std::vector<float> y = problem.Compute<8>(3);
  problem.Check(y);
  EXPECT_EQ(y, problem.Compute<8>(1)) << "whatever blocks there are";
  EXPECT_EQ(y, problem.Compute<16>(132));
  EXPECT_EQ(y, problem.Compute<32>(2));
  EXPECT_EQ(y, problem.Compute<64>(5)) << "whatever rows are computed together";
  EXPECT_EQ(y, problem.Compute<128>(4));
  EXPECT_EQ(y, problem.Compute<192>(3));
  EXPECT_EQ(y, problem.Compute<256>(2));
}

TEST(GroupedWgmma, Bf16OfMoreStepsThanStages) {
  Problem<Format::kBf16> problem(Bf16(72, 64 * 27 - 24), {3, 9});
  const std::vector<float> y = problem.Compute<8>(2);
  problem.Check(y);
  EXPECT_EQ(y, problem.Compute<256>(1));
}

TEST(GroupedWgmma, E4M3IsRightAndTheSameForEveryNumberOfRows) {
  Problem<Format::kE4M3> problem(E4M3Blocks(328, 328), {1, 0, 19, 8, 40});
  const std::vector<float> y = problem.Compute<8>(3);
  problem.Check(y);
  EXPECT_EQ(y, problem.Compute<16>(132));
  EXPECT_EQ(y, problem.Compute<32>(2));
  EXPECT_EQ(y, problem.Compute<64>(5));
  EXPECT_EQ(y, problem.Compute<128>(4));
}

TEST(GroupedWgmma, E4M3WithAScaleForEachRow) {
  Problem<Format::kE4M3> problem(
      {.format = Format::kE4M3, .rows = 136, .columns = 128 * 15, .group = 1920}, {5, 3});
  const std::vector<float> y = problem.Compute<8>(2);
  problem.Check(y);
  EXPECT_EQ(y, problem.Compute<128>(1));
}

TEST(GroupedWgmma, ManyRows) {
  Problem<Format::kBf16> all_on_one(Bf16(64, 64), {0, 0, 4096, 0});
  const std::vector<float> y = all_on_one.Compute<256>(7);
  all_on_one.Check(y);
  EXPECT_EQ(y, all_on_one.Compute<192>(5));
  EXPECT_EQ(y, all_on_one.Compute<64>(3));
  Problem<Format::kE4M3> fp8(E4M3Blocks(64, 128), {700, 0, 1});
  const std::vector<float> of_fp8 = fp8.Compute<128>(3);
  fp8.Check(of_fp8);
  EXPECT_EQ(of_fp8, fp8.Compute<8>(11));
}

// Outputs of the activation are those of what is stored.
template <Format kFormat, int kRows>
void ExpectActivated(const TileShape& shape) {
  Problem<kFormat> problem(shape, {2, kRows / 2 + 1});
  const auto plain = problem.template Compute<kRows>(2);
  const auto y = problem.template Compute<kRows, Epilogue::kActivate, uint16_t>(3);
  const auto rows = static_cast<size_t>(shape.rows);
  for (size_t pair = 0; pair < plain.size() / rows; ++pair) {
    for (size_t n = 0; n < rows / 2; ++n) {
      const auto output = static_cast<int32_t>(n);
      const float gate = plain[pair * rows + static_cast<size_t>(GateUpRow(output, false))];
      const float up = plain[pair * rows + static_cast<size_t>(GateUpRow(output, true))];
      ASSERT_EQ(y[pair * rows + n], ToBf16(Activated(gate, up, {}))) << pair << ", " << n;
    }
  }
}
TEST(GroupedWgmma, Activates) {
  ExpectActivated<Format::kBf16, 16>(Bf16(144, 128));
  ExpectActivated<Format::kBf16, 256>(Bf16(144, 128));
  ExpectActivated<Format::kE4M3, 128>(E4M3Blocks(272, 256));
}

TEST(RowsABlock, IsEnoughForFewAndTheMostForMany) {
  for (const Format format : {Format::kBf16, Format::kE4M3}) {
    const int most = format == Format::kBf16 ? 256 : 128;
    for (int left = 1; left <= 4096; ++left) {
      const int rows = RowsABlock(format, left);
      EXPECT_GE(rows, std::min(left, most));
      EXPECT_TRUE(rows == 8 || left > rows / 2) << "no more than twice as many as are needed";
    }
  }
}

TEST(QuantizeRows, IsTheNearestOfE4M3AndLeavesNaNInItsRow) {
  Rows rows(33, 200, 3);
  for (int r = 0; r < 33; ++r) {
    for (int g = 0; g < 2; ++g) {
      const int end = std::min(200, g * 128 + 128);
      double most = 0;
      for (int k = g * 128; k < end; ++k) most = std::max(most, std::fabs(rows.Exact(r, k)));
      const float scale = rows.scales[static_cast<size_t>(r * 2 + g)];
      EXPECT_FLOAT_EQ(scale, static_cast<float>(most / 448));
      for (int k = g * 128; k < end; ++k) {
        // Half a unit: of 1/8 of the value, or of the smallest number.
        const double bound =
            std::max(std::fabs(rows.Exact(r, k)) / 16, std::ldexp(double{scale}, -10)) * (1 + 1e-6);
        ASSERT_NEAR(rows.Quantized(r, k), rows.Exact(r, k), bound) << r << ", " << k;
      }
    }
    for (int k = 200; k < 256; ++k) ASSERT_EQ(rows.Codes()[r * 256 + k], 0);
  }
  rows.values[5 * static_cast<size_t>(rows.stride) + 130] = 0x7fc0;
  std::fill_n(rows.values.begin() + 6 * rows.stride, 200, uint16_t{0});
  const std::vector<uint8_t> before(rows.Codes(), rows.Codes() + 33 * 256);
  const QuantizeArgs args{.x = rows.values.data(),
                          .x_stride = rows.stride,
                          .rows = 33,
                          .columns = 200,
                          .out = rows.Codes(),
                          .out_stride = 256,
                          .scales = rows.scales.data(),
                          .scale_stride = 2};
  simt::Launch({5}, {kQuantizeThreads}, 0, [&] { QuantizeRows(args); });
  EXPECT_EQ(rows.Codes()[5 * 256 + 130] & 127, 127);
  for (int i = 0; i < 33 * 256; ++i) {
    if (i == 5 * 256 + 130) continue;
    if (i / 256 == 6) {
      ASSERT_EQ(rows.Codes()[i], 0);
    } else if (i / 128 != 11) {  // whose largest may have been where NaN is now
      ASSERT_EQ(rows.Codes()[i], before[static_cast<size_t>(i)]) << i;
    }
  }
}

}  // namespace
}  // namespace switchyard::cuda
