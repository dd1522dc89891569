// Embedding, RMSNorm, rope and records of the cache against plain loops, run by tests/support/simt.
#include "services/kernels/cuda/norm.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace switchyard::cuda {
namespace {

// Floats that begin where vectors of four may.
class Floats {
 public:
  explicit Floats(size_t n, uint32_t seed = 0) : values_(n + 4) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (float& x : values_) x = seed == 0 ? NAN : normal(random);
  }
  float* data() {
    return values_.data() + reinterpret_cast<uintptr_t>(values_.data()) / 4 % 4 * 3 % 4;
  }
  float& operator[](size_t i) { return data()[i]; }

 private:
  std::vector<float> values_;
};

void Synchronize() { ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess); }

void CheckNorm(int32_t rows, int32_t width) {
  const auto w = static_cast<size_t>(width), n = static_cast<size_t>(rows) * (w + 8);
  Floats x(n, 1), add(n, 2), weight(w, 3), out(static_cast<size_t>(rows) * w);
  Floats before = x;
  const NormArgs args{.x = {x.data(), width + 8},
                      .rows = rows,
                      .width = width,
                      .add = add.data(),
                      .add_stride = width + 8,
                      .weight = weight.data(),
                      .eps = 1e-5f,
                      .out = {out.data(), width}};
  ASSERT_EQ(LaunchRmsNorm(args, nullptr), cudaSuccess);
  Synchronize();
  for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
    double squares = 0;
    for (size_t i = 0; i < w; ++i) {
      const size_t at = r * (w + 8) + i;
      ASSERT_EQ(x[at], before[at] + add[at]);
      squares += static_cast<double>(x[at]) * static_cast<double>(x[at]);
    }
    const double scale = 1 / std::sqrt(squares / width + static_cast<double>(args.eps));
    for (size_t i = 0; i < w; ++i) {
      const double y =
          static_cast<double>(x[r * (w + 8) + i]) * scale * static_cast<double>(weight[i]);
      ASSERT_NEAR(out[r * w + i], y, 1e-6 * std::fabs(y)) << "row " << r << ", column " << i;
    }
  }
  // One row of them alone, in bf16.
  const int32_t last = rows - 1;
  Floats alone(w);
  NormArgs one = args;
  one.rows = 1, one.gather = &last, one.add = nullptr, one.out = {alone.data(), width};
  ASSERT_EQ(LaunchRmsNorm(one, nullptr), cudaSuccess);
  std::vector<uint16_t> rounded(w + 8);
  while (reinterpret_cast<uintptr_t>(rounded.data()) % 16 != 0) FAIL() << "vectors lie at 16";
  one.out = {rounded.data(), width, true};
  ASSERT_EQ(LaunchRmsNorm(one, nullptr), cudaSuccess);
  Synchronize();
  for (size_t i = 0; i < w; ++i) {
    const float in_many = out[static_cast<size_t>(last) * w + i];
    ASSERT_EQ(alone[i], in_many) << "column " << i;
    ASSERT_EQ(rounded[i], ToBf16(in_many)) << "column " << i;
  }
}

TEST(CudaNorm, RowsOfAWarpAndOfABlock) {
  CheckNorm(11, 64);
  CheckNorm(3, 24);
  CheckNorm(9, 1024);
  CheckNorm(3, 1028);
  CheckNorm(2, 7168);
}

void CheckRope(bool interleaved, int dim, float clip, bool in_place) {
  constexpr int kRows = 3, kHeads = 5, kWidth = 12, kStride = kHeads * 16, kToStride = kHeads * 20;
  Floats x(kRows * kStride, 4), table(static_cast<size_t>(10 * dim), 5), to(kRows * kToStride);
  Floats before = x;
  const int32_t positions[kRows] = {7, -1, 0};
  const RopeArgs args{.from = x.data(),
                      .to = in_place ? x.data() : to.data(),
                      .from_stride = kStride,
                      .from_head_stride = 16,
                      .to_stride = in_place ? kStride : kToStride,
                      .to_head_stride = in_place ? 16 : 20,
                      .rows = kRows,
                      .heads = kHeads,
                      .width = kWidth,
                      .dim = dim,
                      .interleaved = interleaved,
                      .clip = clip,
                      .positions = positions,
                      .table = table.data()};
  ASSERT_EQ(LaunchRope(args, nullptr), cudaSuccess);
  Synchronize();
  for (int r = 0; r < kRows; ++r) {
    for (int h = 0; h < kHeads; ++h) {
      const float* from = before.data() + r * kStride + h * 16;
      const float* out = args.to + r * args.to_stride + h * args.to_head_stride;
      if (positions[r] < 0) {
        EXPECT_TRUE(in_place ? out[0] == from[0] : std::isnan(out[0])) << "no position";
        continue;
      }
      const auto in = [&](int i) {
        return clip > 0 ? std::fmin(clip, std::fmax(-clip, from[i])) : from[i];
      };
      for (int i = 0; i < kWidth; ++i) {
        const int half = dim / 2, pair = interleaved ? i / 2 : i % half;
        const bool second = interleaved ? i % 2 == 1 : i >= half;
        const int other = interleaved ? i ^ 1 : second ? i - half : i + half;
        if (i >= dim) {
          ASSERT_EQ(out[i], in(i));
          continue;
        }
        const float c = table.data()[positions[r] * dim + pair];
        const float s = table.data()[positions[r] * dim + half + pair];
        ASSERT_EQ(out[i], std::fma(in(i), c, second ? in(other)*s : -(in(other)*s)))
            << "row " << r << ", head " << h << ", " << i;
      }
    }
  }
}

TEST(CudaNorm, Rope) {
  for (const bool interleaved : {false, true}) {
    CheckRope(interleaved, 12, 0, true);
    CheckRope(interleaved, 8, 0, false);
    CheckRope(interleaved, 8, 0.5f, true);
  }
}

TEST(CudaNorm, RecordsOfTheCache) {
  constexpr int kWidth = 576, kRows = 4, kShift = 2;
  Floats x(kRows * kWidth, 6);
  const int32_t positions[kRows] = {0, 5, -1, 6};
  const int64_t table_of_row[kRows] = {0, 2, 0, 2};
  const int32_t tables[] = {3, 1, 2, 0};
  std::vector<uint16_t> cache(4 * 4 * kWidth, 7);
  ASSERT_EQ(LaunchStoreKv({.from = x.data(),
                           .stride = kWidth,
                           .rows = kRows,
                           .width = kWidth,
                           .positions = positions,
                           .table_of_row = table_of_row,
                           .tables = tables,
                           .cache = reinterpret_cast<unsigned char*>(cache.data()),
                           .block_stride_bytes = 4 * kWidth * 2,
                           .block_shift = kShift},
                          nullptr),
            cudaSuccess);
  Synchronize();
  std::vector<uint16_t> expected(cache.size(), 7);
  const int slots[kRows] = {3 * 4, 1, -1, 2};  // block · 4 + slot
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kWidth && slots[r] >= 0; ++i) {
      expected[static_cast<size_t>(slots[r] * kWidth + i)] =
          static_cast<uint16_t>(ToBf16(x.data()[r * kWidth + i]));
    }
  }
  EXPECT_EQ(cache, expected);
}

TEST(CudaNorm, EmbeddingAndRounding) {
  constexpr int kWidth = 1032, kVocab = 3, kRows = 4;
  std::vector<uint16_t> table(kVocab * kWidth), back(kRows * kWidth);
  std::mt19937 random(8);
  for (uint16_t& x : table) x = static_cast<uint16_t>(ToBf16(static_cast<float>(random() % 999)));
  const int32_t tokens[kRows] = {2, 0, 2, 1};
  Floats out(kRows * kWidth);
  ASSERT_EQ(LaunchEmbed(table.data(), kWidth, tokens, kRows, {out.data(), kWidth}, nullptr),
            cudaSuccess);
  ASSERT_EQ(LaunchRoundRows({out.data(), kWidth}, kRows, kWidth, back.data(), kWidth, nullptr),
            cudaSuccess);
  Synchronize();
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kWidth; ++i) {
      const uint16_t stored = table[static_cast<size_t>(tokens[r] * kWidth + i)];
      ASSERT_EQ(out.data()[r * kWidth + i], FromBf16(stored));
      ASSERT_EQ(back[static_cast<size_t>(r * kWidth + i)], stored);
    }
  }
}

}  // namespace
}  // namespace switchyard::cuda
