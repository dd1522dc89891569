// Attention over a paged cache against plain loops in float64, run by tests/support/simt.
#include "services/kernels/cuda/attention_launch.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace switchyard::cuda {
namespace {

struct Case {
  int heads = 0, kv_heads = 0, key_dim = 0, value_dim = 0;
  bool values_in_key = false;
  // Of each sequence the positions that are asked for, ascending.
  std::vector<std::vector<int32_t>> queries;
  int window = 0;
  bool sinks = false;
};

class Problem {
 public:
  explicit Problem(const Case& c) : c_(c) {
    record_ = c.kv_heads * (c.key_dim + (c.values_in_key ? 0 : c.value_dim));
    int blocks = 1;
    for (const auto& positions : c.queries) {
      blocks += positions.back() / kBlock + 1;
      sequences_.insert(sequences_.end(), positions.size(), static_cast<int>(tables_.size()));
      positions_.insert(positions_.end(), positions.begin(), positions.end());
      // Blocks that nobody sees are none of the cache's.
      std::vector<int32_t>& table = tables_.emplace_back();
      const int first = FirstKey(positions.front(), c.window) / kBlock;
      for (int b = 0; b <= positions.back() / kBlock; ++b) table.push_back(b < first ? 1 << 30 : 0);
    }
    cache_.assign(static_cast<size_t>(blocks * kBlock * record_) + 8, 0x7fc0);  // NaN
    while (reinterpret_cast<uintptr_t>(&cache_[offset_]) % 16 != 0) ++offset_;
    Fill(blocks);
    std::normal_distribution<float> normal;
    q_.resize(Rows() * static_cast<size_t>(c.heads * c.key_dim));
    for (float& x : q_) x = normal(random_);
    for (int h = 0; h < c.heads; ++h) sinks_.push_back(normal(random_));
    scale_ = 1.5f / std::sqrt(static_cast<float>(c.key_dim));
  }

  size_t Rows() const { return positions_.size(); }
  size_t Width() const { return static_cast<size_t>(c_.heads * c_.value_dim); }

  // The rows [first, end) alone; `slots` is what may be computed side by side.
  template <typename Shape, typename Out = float>
  std::vector<Out> Compute(int slots, int split_keys = 128, size_t first = 0, size_t end = 0) {
    end = end == 0 ? Rows() : end;
    std::vector<int32_t> flat;
    std::vector<QueryRun> runs(1);  // of no rows
    const int most = QueriesATile(c_.heads, c_.kv_heads, Shape::kRows);
    for (size_t r = first; r < end; ++r) {
      const bool fresh = r == first || sequences_[r] != sequences_[r - 1];
      if (fresh || runs.back().count == most) {
        runs.push_back({static_cast<int32_t>(r - first), 0, static_cast<int64_t>(flat.size())});
        const auto& table = tables_[static_cast<size_t>(sequences_[r])];
        flat.insert(flat.end(), table.begin(), table.end());
      }
      ++runs.back().count;
    }
    const size_t rows = end - first, vectors = rows * static_cast<size_t>(c_.heads * slots);
    std::vector<Out> out(rows * Width(), static_cast<Out>(777));
    std::vector<float> partial(vectors * static_cast<size_t>(c_.value_dim), NAN);
    std::vector<float2> stats(vectors, float2{NAN, NAN});
    const AttentionArgs args{.q = q_.data() + first * static_cast<size_t>(c_.heads * c_.key_dim),
                             .out = out.data(),
                             .out_bf16 = sizeof(Out) == 2,
                             .runs = runs.data(),
                             .positions = positions_.data() + first,
                             .tables = flat.data(),
                             .cache = reinterpret_cast<const unsigned char*>(&cache_[offset_]),
                             .block_stride_bytes = kBlock * record_ * 2,
                             .block_shift = kShift,
                             .rows = static_cast<int32_t>(rows),
                             .heads = c_.heads,
                             .kv_heads = c_.kv_heads,
                             .scale = scale_,
                             .window = c_.window,
                             .sinks = c_.sinks ? sinks_.data() : nullptr,
                             .split_keys = split_keys,
                             .slots = slots,
                             .partial = partial.data(),
                             .stats = stats.data()};
    EXPECT_EQ(LaunchAttention<Shape>(args, static_cast<int32_t>(runs.size()), nullptr),
              cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return out;
  }

  void Check(const std::vector<float>& out) {
    for (size_t r = 0; r < Rows(); ++r) {
      for (int h = 0; h < c_.heads; ++h) CheckHead(r, h, out);
    }
  }

 private:
  static constexpr int kShift = 4, kBlock = 1 << kShift;

  // Numbers where a query looks; the sequences' blocks lie in no order.
  void Fill(int blocks) {
    std::vector<int32_t> order;
    for (int b = 1; b < blocks; ++b) order.push_back(b);
    std::shuffle(order.begin(), order.end(), random_);
    std::normal_distribution<float> normal;
    for (size_t s = 0; s < tables_.size(); ++s) {
      for (int32_t& b : tables_[s]) {
        if (b == 0) b = order.back(), order.pop_back();
      }
      for (int j = FirstKey(c_.queries[s].front(), c_.window); j <= c_.queries[s].back(); ++j) {
        for (int i = 0; i < record_; ++i) {
          Element(static_cast<int>(s), j, i) = static_cast<uint16_t>(ToBf16(normal(random_)));
        }
      }
    }
  }
  uint16_t& Element(int sequence, int position, int i) {
    const int32_t block =
        tables_[static_cast<size_t>(sequence)][static_cast<size_t>(position / kBlock)];
    return cache_[offset_ +
                  static_cast<size_t>((block * kBlock + position % kBlock) * record_ + i)];
  }
  double Key(size_t r, int j, int at) {
    return static_cast<double>(FromBf16(Element(sequences_[r], j, at)));
  }
  void CheckHead(size_t r, int h, const std::vector<float>& out) {
    const int kv = h / (c_.heads / c_.kv_heads);
    const int value_at = c_.values_in_key ? 0 : c_.kv_heads * c_.key_dim + kv * c_.value_dim;
    const float* q = &q_[(r * static_cast<size_t>(c_.heads) + static_cast<size_t>(h)) *
                         static_cast<size_t>(c_.key_dim)];
    std::vector<double> sum(static_cast<size_t>(c_.value_dim)), size(sum);
    double total = c_.sinks ? std::exp(static_cast<double>(sinks_[static_cast<size_t>(h)])) : 0;
    for (int j = FirstKey(positions_[r], c_.window); j <= positions_[r]; ++j) {
      double score = 0;
      for (int k = 0; k < c_.key_dim; ++k) {
        score += static_cast<double>(FromBf16(ToBf16(q[k]))) * Key(r, j, kv * c_.key_dim + k);
      }
      const double weight = std::exp(score * static_cast<double>(scale_));
      total += weight;
      for (int k = 0; k < c_.value_dim; ++k) {
        const double x = weight * Key(r, j, value_at + k);
        sum[static_cast<size_t>(k)] += x, size[static_cast<size_t>(k)] += std::fabs(x);
      }
    }
    const size_t at = r * Width() + static_cast<size_t>(h * c_.value_dim);
    for (size_t k = 0; k < sum.size(); ++k) {
      // Weights are rounded to bf16, by at most 2^-8.
      ASSERT_NEAR(out[at + k], sum[k] / total, (1.0 / 256 + 1e-4) * size[k] / total)
          << "row " << r << ", head " << h << ", column " << k;
    }
  }

  const Case c_;
  std::mt19937 random_{11};
  int record_ = 0;
  size_t offset_ = 0;
  float scale_ = 0;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<int> sequences_;  // of rows
  std::vector<int32_t> positions_;
  std::vector<uint16_t> cache_;
  std::vector<float> q_, sinks_;
};

template <int kRows, int kStages = 2>
using Mla = AttentionShape<576, 512, true, kRows, kStages>;
template <int kDim, int kRows, int kStages = 2>
using Gqa = AttentionShape<kDim, kDim, false, kRows, kStages>;

// What is right, however the work is cut: tiles, stages, splits, who else is in the call.
template <typename Small, typename Middle, typename Large>
void ExpectRightAndTheSame(const Case& c) {
  Problem problem(c);
  const std::vector<float> out = problem.Compute<Small>(1);
  problem.Check(out);
  EXPECT_EQ(out, problem.Compute<Small>(4)) << "splits side by side";
  EXPECT_EQ(out, problem.Compute<Middle>(1)) << "other tiles";
  EXPECT_EQ(out, problem.Compute<Large>(1)) << "large tiles";
  EXPECT_EQ(out, problem.Compute<Large>(4)) << "large tiles, splits side by side";
  const size_t last = problem.Rows() - 1;
  EXPECT_EQ(std::vector<float>(out.end() - static_cast<ptrdiff_t>(problem.Width()), out.end()),
            problem.Compute<Large>(1, 128, last, last + 1))
      << "alone";
}

TEST(CudaAttention, Mla16Heads) {
  ExpectRightAndTheSame<Mla<16, 3>, Mla<32>, Mla<64>>({.heads = 16,
                                                       .kv_heads = 1,
                                                       .key_dim = 576,
                                                       .value_dim = 512,
                                                       .values_in_key = true,
                                                       .queries = {{0}, {62, 63, 64, 65}, {200}}});
}
TEST(CudaAttention, Mla128Heads) {
  ExpectRightAndTheSame<Mla<16>, Mla<32>, Mla<64>>({.heads = 128,
                                                    .kv_heads = 1,
                                                    .key_dim = 576,
                                                    .value_dim = 512,
                                                    .values_in_key = true,
                                                    .queries = {{130}}});
}
TEST(CudaAttention, GqaOfOddGroupsWithSinks) {
  ExpectRightAndTheSame<Gqa<64, 16>, Gqa<64, 32, 3>, Gqa<64, 64>>(
      {.heads = 10,
       .kv_heads = 2,
       .key_dim = 64,
       .value_dim = 64,
       .queries = {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}, {120, 127, 128, 129, 383, 384}},
       .sinks = true});
}
TEST(CudaAttention, GqaWithWindow) {
  ExpectRightAndTheSame<Gqa<128, 16>, Gqa<128, 32>, Gqa<128, 64>>(
      {.heads = 16,
       .kv_heads = 2,
       .key_dim = 128,
       .value_dim = 128,
       .queries = {{250, 251, 252, 253, 254, 255, 256, 257, 258, 259}, {99, 100, 101}, {500}},
       .window = 100,
       .sinks = true});
}
TEST(CudaAttention, GroupsLargerThanATile) {
  ExpectRightAndTheSame<Gqa<64, 16>, Gqa<64, 32>, Gqa<64, 64>>(
      {.heads = 24, .kv_heads = 1, .key_dim = 64, .value_dim = 64, .queries = {{70}, {129, 130}}});
}

TEST(CudaAttention, SmallVectors) {
  using Tiny = AttentionShape<40, 32, true, 16, 2>;
  ExpectRightAndTheSame<Tiny, AttentionShape<40, 32, true, 32, 2>,
                        AttentionShape<40, 32, true, 64, 3>>(
      {.heads = 4,
       .kv_heads = 1,
       .key_dim = 40,
       .value_dim = 32,
       .values_in_key = true,
       .queries = {{5, 6, 7, 8, 9, 10}, {333}}});
  ExpectRightAndTheSame<Gqa<24, 16>, Gqa<24, 32>, Gqa<24, 64, 3>>(
      {.heads = 4, .kv_heads = 2, .key_dim = 24, .value_dim = 24, .queries = {{64, 65}, {333}}});
}

TEST(CudaAttention, TilesThatFit) {
  const AttentionVectors mla = {576, 512, true}, gqa = {128, 128, false};
  constexpr size_t kAmpere = 163 << 10, kHopper = 227 << 10;
  EXPECT_EQ(AttentionRows(mla, 128, 1, 1, kHopper), 64);
  EXPECT_EQ(AttentionRows(mla, 128, 1, 1, kAmpere), 16);
  EXPECT_EQ(AttentionRows(mla, 16, 1, 1, kHopper), 16);
  EXPECT_EQ(AttentionRows(mla, 16, 1, 4, kHopper), 64);
  EXPECT_EQ(AttentionRows(gqa, 32, 4, 1, kAmpere), 16);
  EXPECT_EQ(AttentionRows(gqa, 32, 4, 8, kAmpere), 64);
  EXPECT_LE((Mla<64>::kSharedBytes), kHopper);
  EXPECT_LE((Mla<16, 3>::kSharedBytes), kHopper);
  EXPECT_LE((Mla<16>::kSharedBytes), kAmpere);
  EXPECT_LE((Gqa<128, 64>::kSharedBytes), kAmpere);
  EXPECT_EQ(Attention({48, 48, false}, 16, kHopper, {}, 1, nullptr), cudaErrorInvalidValue);
}

TEST(CudaAttention, OutputInBf16IsTheRounded) {
  Problem problem(
      {.heads = 4, .kv_heads = 2, .key_dim = 64, .value_dim = 64, .queries = {{200}, {3}}});
  const std::vector<float> out = problem.Compute<Gqa<64, 16>>(2);
  std::vector<uint16_t> rounded;
  for (const float x : out) rounded.push_back(static_cast<uint16_t>(ToBf16(x)));
  EXPECT_EQ(rounded, (problem.Compute<Gqa<64, 16>, uint16_t>(2)));
}

}  // namespace
}  // namespace switchyard::cuda
