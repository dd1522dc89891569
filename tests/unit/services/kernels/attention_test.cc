#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "services/kernels/kernels.h"
#include "services/kernels/kv_vector.h"
#include "services/kernels/ops.h"
#include "tests/support/isa_name.h"
#include "tests/unit/services/kernels/random_data.h"

namespace switchyard::kernels {
namespace {

struct Shape {
  int heads, kv_heads, key_dim, value_dim;
  bool values_in_key;
  int block_tokens;
  int window;
  bool sinks;
  DType cache;
};

constexpr Shape kShapes[] = {
    {4, 4, 16, 16, false, 16, 0, false, DType::kF32},    // plain heads
    {8, 2, 24, 24, false, 16, 0, false, DType::kBF16},   // grouped, dim no multiple of 16
    {6, 2, 33, 17, false, 8, 5, true, DType::kBF16},     // odd dims, window and sinks
    {16, 1, 40, 32, true, 16, 0, false, DType::kBF16},   // MLA, values inside the key
    {5, 1, 576, 512, true, 32, 0, false, DType::kF32},   // MLA at its real width
    {64, 8, 64, 64, false, 16, 20, true, DType::kBF16},  // gpt-oss
    {80, 1, 72, 64, true, 24, 0, false, DType::kBF16},   // more heads than a part holds
    {5, 1, 576, 512, true, 32, 0, false, DType::kBF16},
    {4, 2, 64, 48, false, 80, 37, false, DType::kBF16},  // blocks of more than 32 slots
    {8, 2, 128, 128, false, 32, 0, false, DType::kI8},
    {6, 2, 33, 17, false, 8, 5, true, DType::kI8},  // pieces of one number
    {5, 1, 576, 512, true, 32, 0, false, DType::kI8},
    {8, 2, 128, 128, false, 32, 0, false, DType::kF8E4M3},
    {6, 2, 33, 17, false, 8, 5, true, DType::kF8E4M3},
    {5, 1, 576, 512, true, 32, 0, false, DType::kF8E4M3},
};

// Two sequences, each some rows at the end of its history, with scattered blocks. Everything that
// no query may see is NaN.
struct Problem {
  Problem(const Shape& s, int64_t rows_a, int64_t length_a, int64_t rows_b, int64_t length_b,
          uint32_t seed)
      : shape(s) {
    const int64_t blocks_a = length_a / s.block_tokens + 1;
    const int64_t blocks = blocks_a + length_b / s.block_tokens + 1;
    for (int32_t b = 0; b < blocks; ++b) {
      const int32_t scattered = static_cast<int32_t>(blocks) - 1 - b;
      (b < blocks_a ? table_a : table_b).push_back(scattered);
    }
    task.block_stride_bytes = s.block_tokens * RecordBytes() + 28;
    cache.assign(static_cast<size_t>(blocks * task.block_stride_bytes), std::byte{0xff});
    Fill(table_a, length_a, rows_a, seed);
    Fill(table_b, length_b, rows_b, seed + 1);
    const int64_t rows = rows_a + rows_b;
    q = RandomFloats(rows * s.heads * s.key_dim, seed + 2);
    sinks = RandomFloats(s.heads, seed + 3);
    for (int64_t r = 0; r < rows_a; ++r) AddRow(table_a, length_a - rows_a + r);
    for (int64_t r = 0; r < rows_b; ++r) AddRow(table_b, length_b - rows_b + r);
    task = {.q = q.data(),
            .rows = rows,
            .positions = positions.data(),
            .block_tables = tables.data(),
            .cache = cache.data(),
            .cache_dtype = s.cache,
            .block_stride_bytes = task.block_stride_bytes,
            .block_tokens = s.block_tokens,
            .heads = s.heads,
            .kv_heads = s.kv_heads,
            .key_dim = s.key_dim,
            .value_dim = s.value_dim,
            .values_in_key = s.values_in_key,
            .scale = 0.3f,
            .window = s.window};
    if (s.sinks) task.sinks = {reinterpret_cast<std::byte*>(sinks.data()), DType::kF32, s.heads};
  }

  int64_t KeyBytes() const { return KvVectorBytes(shape.cache, shape.key_dim); }
  int64_t ValueBytes() const { return KvVectorBytes(shape.cache, shape.value_dim); }
  int64_t RecordBytes() const {
    return shape.kv_heads * (KeyBytes() + (shape.values_in_key ? 0 : ValueBytes()));
  }
  const std::byte* Record(const int32_t* table, int64_t position) const {
    return cache.data() + table[position / shape.block_tokens] * task.block_stride_bytes +
           position % shape.block_tokens * RecordBytes();
  }

  void Fill(const std::vector<int32_t>& table, int64_t length, int64_t rows, uint32_t seed) {
    const int64_t values_of = shape.values_in_key ? 0 : shape.value_dim;
    const std::vector<float> values =
        RandomFloats(length * shape.kv_heads * (shape.key_dim + values_of), seed);
    const float* next = values.data();
    const int64_t oldest =
        shape.window > 0 ? std::max<int64_t>(0, length - rows + 1 - shape.window) : 0;
    for (int64_t p = oldest; p < length; ++p) {
      std::byte* at = cache.data() + (Record(table.data(), p) - cache.data());
      for (int h = 0; h < shape.kv_heads; ++h, next += shape.key_dim, at += KeyBytes()) {
        StoreKv(next, shape.key_dim, shape.cache, at);
      }
      if (shape.values_in_key) continue;
      for (int h = 0; h < shape.kv_heads; ++h, next += shape.value_dim, at += ValueBytes()) {
        StoreKv(next, shape.value_dim, shape.cache, at);
      }
    }
  }
  void AddRow(const std::vector<int32_t>& table, int64_t position) {
    positions.push_back(static_cast<int32_t>(position));
    tables.push_back(table.data());
  }

  int64_t OutSize() const { return task.rows * shape.heads * shape.value_dim; }
  std::vector<float> Run(const Compute& compute) {
    std::vector<float> out(static_cast<size_t>(OutSize()), -77.0f);
    task.out = out.data();
    compute.Attention(task);
    return out;
  }
  // One row and head at a time, by the plain loops.
  std::vector<float> RunReference(Isa isa) {
    std::vector<float> out(static_cast<size_t>(OutSize()), -77.0f);
    std::vector<float> scratch(static_cast<size_t>(AttentionScratchFloats(task, 1)));
    task.out = out.data();
    for (int64_t r = 0; r < task.rows; ++r) {
      for (int h = 0; h < shape.heads; ++h) {
        ReferenceFor(isa).attention(task, {r, r + 1, h, h + 1}, scratch.data());
      }
    }
    return out;
  }
  // Column `i` of key or value j, of the KV head.
  double Key(int64_t row, int64_t j, int kv_head, int64_t i) const {
    return LoadKv(Record(task.block_tables[row], j) + kv_head * KeyBytes(), shape.cache,
                  shape.key_dim, i);
  }
  double Value(int64_t row, int64_t j, int kv_head, int64_t i) const {
    if (shape.values_in_key) return Key(row, j, kv_head, i);
    return LoadKv(
        Record(task.block_tables[row], j) + shape.kv_heads * KeyBytes() + kv_head * ValueBytes(),
        shape.cache, shape.value_dim, i);
  }

  Shape shape;
  std::vector<int32_t> table_a, table_b, positions;
  std::vector<const int32_t*> tables;
  std::vector<float> q, sinks;
  std::vector<std::byte> cache;
  AttentionTask task;
};

class AttentionTest : public testing::TestWithParam<Isa> {};

TEST_P(AttentionTest, EqualsTheReferenceBitForBitOnAnyThreads) {
  for (size_t s = 0; s < std::size(kShapes); ++s) {
    const int64_t lengths[][4] = {{1, 1, 1, 40}, {1, 17, 3, 3}, {19, 50, 1, 33}, {33, 33, 2, 70}};
    for (const auto& l : lengths) {
      Problem p(kShapes[s], l[0], l[1], l[2], l[3], 17);
      const std::vector<float> expected = p.RunReference(GetParam());
      for (int threads : {1, 2, 3, 5}) {
        ThreadPool pool(threads);
        EXPECT_EQ(FirstDifference(p.Run(Compute(GetParam(), pool)), expected), -1)
            << "shape " << s << " length " << l[1] << " threads " << threads;
      }
    }
  }
}

TEST_P(AttentionTest, ARowIsTheSameAlone) {
  ThreadPool pool(1);
  const Compute compute(GetParam(), pool);
  for (const Shape& shape : kShapes) {
    Problem p(shape, 21, 45, 4, 9, 23);
    const std::vector<float> together = p.Run(compute);
    const AttentionTask all = p.task;
    const int64_t width = int64_t{shape.heads} * shape.value_dim;
    for (int64_t r = 0; r < all.rows; ++r) {
      std::vector<float> alone(static_cast<size_t>(width));
      AttentionTask one = all;
      one.q += r * shape.heads * shape.key_dim;
      one.out = alone.data();
      one.rows = 1;
      one.positions += r;
      one.block_tables += r;
      compute.Attention(one);
      ASSERT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + r * width, SameBits))
          << "row " << r;
    }
  }
}

// All shapes with a short history, and one with a long one.
std::vector<std::pair<size_t, int64_t>> TruthCases() {
  std::vector<std::pair<size_t, int64_t>> cases;
  for (size_t shape = 0; shape < std::size(kShapes); ++shape) cases.emplace_back(shape, 37);
  cases.emplace_back(1, 33000);
  return cases;
}

// Half of the last place of bf16, of its number.
constexpr double kBF16Rounding = 1.0 / 256;

// Weights are exp of scores, so an error of δ in a score is a relative error of δ in a weight:
// |error| <= (2·max δ + roundings)·max|v|, with δ from the dot product's own bound.
TEST_P(AttentionTest, IsNearTheTruth) {
  ThreadPool pool(1);
  const Compute compute(GetParam(), pool);
  const double eps = std::numeric_limits<float>::epsilon();
  const bool in_bf16 = GetParam() == Isa::kAmx;
  for (const auto& [shape, length] : TruthCases()) {
    const Shape& s = kShapes[shape];
    Problem p(s, 5, length, 3, 20, 29);
    const std::vector<float> out = p.Run(compute);
    for (int64_t r = 0; r < p.task.rows; ++r) {
      const int64_t end = p.positions[static_cast<size_t>(r)] + 1;
      const int64_t begin = s.window > 0 ? std::max<int64_t>(0, end - s.window) : 0;
      for (int h = 0; h < s.heads; ++h) {
        const int kv = h / (s.heads / s.kv_heads);
        std::vector<double> truth(static_cast<size_t>(s.value_dim), 0.0);
        double sum = s.sinks ? std::exp(double{p.sinks[static_cast<size_t>(h)]}) : 0.0;
        double score_norm = 0, value_max = 0;
        for (int64_t j = begin; j < end; ++j) {
          double score = 0, norm = 0;
          for (int64_t k = 0; k < s.key_dim; ++k) {
            const double term =
                double{p.q[static_cast<size_t>((r * s.heads + h) * s.key_dim + k)]} *
                p.Key(r, j, kv, k) * double{p.task.scale};
            score += term;
            norm += std::fabs(term);
          }
          score_norm = std::max(score_norm, norm + std::fabs(score));
          const double weight = std::exp(score);
          sum += weight;
          for (int64_t d = 0; d < s.value_dim; ++d) {
            const double v = p.Value(r, j, kv, d);
            truth[static_cast<size_t>(d)] += weight * v;
            value_max = std::max(value_max, std::fabs(v));
          }
        }
        // Where attention is products of bf16, queries and weights were rounded.
        const double rounding = in_bf16 && s.cache == DType::kBF16 ? kBF16Rounding : 0;
        const double score_error = ((s.key_dim / 16.0 + 7) * eps + rounding) * score_norm;
        const double tolerance =
            (2 * score_error + (static_cast<double>(end - begin) + 8) * eps + rounding) * value_max;
        for (int64_t d = 0; d < s.value_dim; ++d) {
          ASSERT_NEAR(out[static_cast<size_t>((r * s.heads + h) * s.value_dim + d)],
                      truth[static_cast<size_t>(d)] / sum, tolerance);
        }
      }
    }
  }
}

TEST_P(AttentionTest, NanInAQueryStaysInItsHead) {
  ThreadPool pool(1);
  const Compute compute(GetParam(), pool);
  const Shape& shape = kShapes[1];
  Problem p(shape, 6, 40, 2, 9, 31);
  const std::vector<float> clean = p.Run(compute);
  const int64_t row = 3, head = 5;
  p.q[static_cast<size_t>((row * shape.heads + head) * shape.key_dim + 2)] =
      std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> out = p.Run(compute);
  for (size_t i = 0; i < out.size(); ++i) {
    const bool hit = static_cast<int64_t>(i) / shape.value_dim == row * shape.heads + head;
    ASSERT_TRUE(hit ? std::isnan(out[i]) : SameBits(out[i], clean[i])) << i;
  }
}

TEST_P(AttentionTest, ExtremeScoresFollowTheReference) {
  ThreadPool pool(1);
  const Compute compute(GetParam(), pool);
  for (float scale : {1e4f, 1e30f, 0.0f}) {
    Problem p(kShapes[1], 3, 60, 1, 20, 37);
    p.task.scale = scale;
    EXPECT_EQ(FirstDifference(p.Run(compute), p.RunReference(GetParam())), -1) << scale;
  }
}

// What comes back is within half a step of what was stored; a step is the scale, which is at most a
// 256th off the largest magnitude's share, of int8 and an eighth of the number's power of two of
// fp8.
TEST(KvVectorTest, KeepsNumbersWithinHalfAStep) {
  for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
    for (const int64_t dim : {1, 24, 31, 32, 33, 64, 100, 128, 576}) {
      for (const float size : {1e-20f, 1.0f, 3e30f}) {
        std::vector<float> x = RandomFloats(dim, 41, size);
        x[static_cast<size_t>(dim) / 2] = 0;
        std::vector<std::byte> kept(static_cast<size_t>(KvVectorBytes(dtype, dim)));
        StoreKv(x.data(), dim, dtype, kept.data());
        for (int64_t i = 0; i < dim; ++i) {
          const int64_t piece = i / kKvPiece * kKvPiece;
          float max = 0;
          for (int64_t k = piece; k < std::min(piece + kKvPiece, dim); ++k) {
            max = std::max(max, std::fabs(x[static_cast<size_t>(k)]));
          }
          const float value = x[static_cast<size_t>(i)];
          const float step =
              dtype == DType::kI8 ? max / 127 : std::max(std::fabs(value) / 8, max / 448 / 512);
          // Where the scale was rounded down the largest number is cut off by as much.
          const float cut = dtype == DType::kI8 ? 0 : std::fabs(value) / 256;
          EXPECT_LE(std::fabs(LoadKv(kept.data(), dtype, dim, i) - value), step / 2 * 1.005f + cut)
              << Name(dtype) << " " << dim << " " << i;
        }
      }
    }
  }
}

TEST(KvVectorTest, IsAFunctionOfEachPieceAlone) {
  for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
    std::vector<float> x = RandomFloats(96, 43), other = x;
    for (int i = 32; i < 64; ++i) other[static_cast<size_t>(i)] *= 1000;
    std::vector<std::byte> a(102), b(102);
    StoreKv(x.data(), 96, dtype, a.data());
    StoreKv(other.data(), 96, dtype, b.data());
    for (int64_t i = 0; i < 96; ++i) {
      const bool same = LoadKv(a.data(), dtype, 96, i) == LoadKv(b.data(), dtype, 96, i);
      EXPECT_EQ(same, i / 32 != 1) << i;
    }
  }
}

TEST(KvVectorTest, ZerosStayAndWhatIsNotFiniteMakesItsPieceNan) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
    for (const float bad : {inf, -inf, std::nanf("")}) {
      std::vector<float> x(64, 1e-38f);
      x[40] = bad;
      std::vector<std::byte> kept(68, std::byte{0xff});
      StoreKv(x.data(), 64, dtype, kept.data());
      for (int64_t i = 0; i < 64; ++i) {
        const float y = LoadKv(kept.data(), dtype, 64, i);
        EXPECT_TRUE(i < 32 ? y == 0 : std::isnan(y)) << i;
      }
    }
  }
}

TEST(KvVectorTest, EveryFp8SurvivesARoundTrip) {
  for (int bits = 0; bits < 256; ++bits) {
    const float value = ToFloat(f8e4m3{static_cast<uint8_t>(bits)});
    if ((bits & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
    } else {
      EXPECT_EQ(ToF8E4M3(value).bits, bits);
    }
  }
  EXPECT_EQ(ToFloat(ToF8E4M3(1e9f)), 448);
  EXPECT_EQ(ToFloat(ToF8E4M3(17)), 16) << "ties to even";
  EXPECT_EQ(ToFloat(ToF8E4M3(19)), 20) << "ties to even";
  EXPECT_EQ(ToFloat(ToF8E4M3(-0x1p-10f)), 0);
  EXPECT_EQ(ToFloat(ToF8E4M3(0x1.8p-9f)), 0x1p-8f);
}

INSTANTIATE_TEST_SUITE_P(Isas, AttentionTest, testing::ValuesIn(SupportedIsas()), IsaName);

}  // namespace
}  // namespace switchyard::kernels
