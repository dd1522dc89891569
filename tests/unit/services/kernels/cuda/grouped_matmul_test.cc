// The grouped product of matrices against plain loops in float64, run by tests/support/simt.
#include "services/kernels/cuda/grouped_matmul.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "tests/unit/services/kernels/cuda/tiled_weights.h"

namespace switchyard::cuda {
namespace {

struct Case {
  TileShape shape;
  std::vector<int> rows;  // of each expert
};

template <Format kFormat, int kRows, Epilogue kEpilogue>
void Run(const MatMulArgs& args, unsigned runs) {
  simt::Launch({static_cast<unsigned>(args.shape.row_tiles()), runs}, {kMatMulThreads},
               MatMulStage<kFormat, kRows>::kSharedBytes,
               [&] { GroupedMatMul<kFormat, kRows, kEpilogue>(args); });
}

class Problem {
 public:
  explicit Problem(const Case& c) : shape_(c.shape) {
    uint32_t seed = 1;
    for (const int rows : c.rows) {
      weights_.emplace_back(shape_, seed++);
      counts_.push_back(rows);
      pairs_ += rows;
    }
    for (TiledWeights& w : weights_) matrices_.push_back({w.tiles(), nullptr});
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    stride_ = (shape_.columns + 15) / 8 * 8;
    x_.resize(static_cast<size_t>(tokens_ * stride_), 0x7fc0);  // NaN beyond the columns
    for (int t = 0; t < tokens_; ++t) {
      for (int k = 0; k < shape_.columns; ++k) {
        x_[static_cast<size_t>(t * stride_ + k)] = static_cast<uint16_t>(ToBf16(normal(random)));
      }
    }
    for (int p = 0; p < pairs_; ++p) gather_.push_back(static_cast<int32_t>(random() % tokens_));
  }
  template <Format kFormat, int kRows, Epilogue kEpilogue = Epilogue::kStore, typename Y = float>
  std::vector<Y> Compute() {
    std::vector<RowRun> runs;
    int first = 0;
    for (size_t e = 0; e < counts_.size(); ++e) {
      for (int at = 0; at < counts_[e]; at += kRows) {
        runs.push_back({static_cast<int32_t>(e), first + at, std::min(kRows, counts_[e] - at)});
      }
      first += counts_[e];
    }
    std::vector<Y> y(static_cast<size_t>(pairs_ * shape_.rows), static_cast<Y>(777));
    MatMulArgs args{.matrices = matrices_.data(),
                    .runs = runs.data(),
                    .shape = shape_,
                    .x = x_.data(),
                    .x_stride = stride_,
                    .gather = gather_.data(),
                    .y = y.data(),
                    .y_stride = shape_.rows};
    Run<kFormat, kRows, kEpilogue>(args, static_cast<unsigned>(runs.size()));
    return y;
  }
  void Check(const std::vector<float>& y) {
    size_t pair = 0;
    for (size_t e = 0; e < counts_.size(); ++e) {
      for (int i = 0; i < counts_[e]; ++i, ++pair) {
        for (int n = 0; n < shape_.rows; ++n) {
          double sum = 0, size = 0;
          for (int k = 0; k < shape_.columns; ++k) {
            const double product =
                weights_[e].At(n, k) *
                static_cast<double>(FromBf16(x_[static_cast<size_t>(gather_[pair] * stride_ + k)]));
            sum += product, size += std::fabs(product);
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
  static constexpr int tokens_ = 9;
  int64_t stride_ = 0;
  int pairs_ = 0;
  std::vector<int> counts_;
  std::vector<TiledWeights> weights_;
  std::vector<Matrix> matrices_;
  std::vector<uint16_t> x_;
  std::vector<int32_t> gather_;
};

template <Format kFormat>
void ExpectRightAndTheSame(const TileShape& shape) {
  Problem problem({shape, {1, 0, 19, 8}});
  const std::vector<float> y = problem.Compute<kFormat, 8>();
  problem.Check(y);
  EXPECT_EQ(y, (problem.Compute<kFormat, 16>())) << "whatever rows are computed together";
  EXPECT_EQ(y, (problem.Compute<kFormat, 32>()));
  EXPECT_EQ(y, (problem.Compute<kFormat, 64>()));
}

TEST(GroupedMatMul, Bf16) {
  ExpectRightAndTheSame<Format::kBf16>({.format = Format::kBf16, .rows = 128, .columns = 192});
  ExpectRightAndTheSame<Format::kBf16>({.format = Format::kBf16, .rows = 72, .columns = 40});
}
TEST(GroupedMatMul, Fp8InBlocks) {
  ExpectRightAndTheSame<Format::kE4M3>(
      {.format = Format::kE4M3, .rows = 136, .columns = 320, .group = 128, .group_rows = 128});
}
TEST(GroupedMatMul, Int8ByRowsAndGroups) {
  ExpectRightAndTheSame<Format::kI8>(
      {.format = Format::kI8, .rows = 64, .columns = 256, .group = 256});
  ExpectRightAndTheSame<Format::kI8>(
      {.format = Format::kI8, .rows = 80, .columns = 160, .group = 32});
}
TEST(GroupedMatMul, Int4WithAndWithoutZeroPoints) {
  ExpectRightAndTheSame<Format::kI4>(
      {.format = Format::kI4, .rows = 64, .columns = 512, .group = 128, .zeros = true});
  ExpectRightAndTheSame<Format::kI4>(
      {.format = Format::kI4, .rows = 72, .columns = 288, .group = 32});
}
TEST(GroupedMatMul, E2M1) {
  ExpectRightAndTheSame<Format::kE2M1>(
      {.format = Format::kE2M1, .rows = 64, .columns = 320, .group = 32});
}

}  // namespace
}  // namespace switchyard::cuda
