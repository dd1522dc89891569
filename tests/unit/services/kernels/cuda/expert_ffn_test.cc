// The plugin's functions (abi.h) over an emulated device: frames through weights packed as tiles,
// against plain loops in float64.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>
#include <vector>

#include "services/kernels/cuda/abi.h"
#include "services/kernels/cuda/expert_block.h"
#include "services/kernels/kernels.h"
#include "services/kernels/pack_tiles.h"
#include "tests/unit/services/kernels/quantised_weights.h"
#include "tests/unit/services/kernels/random_data.h"

namespace switchyard::kernels {
namespace {

constexpr int kHidden = 256, kWidth = 128;
constexpr int kRowsOfAll = 90;

class Matrix {  // of a form, or bf16, or e4m3
 public:
  Matrix(const Form& form, WeightLayout layout, int64_t out, int64_t in, uint32_t seed) {
    const bool out_in = layout == WeightLayout::kOutIn;
    if (form.dtype == DType::kBF16 || form.dtype == DType::kF8E4M3) {
      const bool f8 = form.dtype == DType::kF8E4M3;
      view_ = {
          .dtype = form.dtype, .layout = layout, .out = out, .in = in, .stride = out_in ? in : out};
      bytes_ = f8 ? std::vector<std::byte>(static_cast<size_t>(out * in))
                  : Stored(RandomFloats(out * in, seed, 0.1f), DType::kBF16);
      std::mt19937 random(seed);
      for (std::byte& b : bytes_) {
        if (f8) b = static_cast<std::byte>(random() & 0xf7);  // 0xf7, 0x77: numbers
      }
      if (f8) {
        view_.scales = {.dtype = DType::kF32,
                        .group_rows = form.zero_offset,
                        .group_columns = 128,
                        .row_stride = (in + 127) / 128,
                        .column_stride = 1};
        for (int i = 0; i < (out + form.zero_offset - 1) / form.zero_offset * ((in + 127) / 128);
             ++i) {
          scales_.push_back(0.001f * static_cast<float>(1 + i % 5));
        }
        view_.scales.data = reinterpret_cast<const std::byte*>(scales_.data());
      }
      view_.data = bytes_.data();
      return;
    }
    made_.emplace_back(form, layout, out_in ? out : in, out_in ? in : out, 0, seed);
    view_ = made_.back().view();
  }
  const WeightView& view() const { return view_; }
  double At(int64_t r, int64_t k) const {
    if (values_.empty()) {
      values_.resize(static_cast<size_t>(view_.out * view_.in));
      for (int64_t i = 0; i < view_.rows(); ++i)
        RowToFloat(view_, i, values_.data() + i * view_.columns());
    }
    const bool out_in = view_.layout == WeightLayout::kOutIn;
    return static_cast<double>(
        values_[static_cast<size_t>(out_in ? r * view_.in + k : k * view_.out + r)]);
  }

 private:
  WeightView view_;
  std::vector<std::byte> bytes_;
  std::vector<float> scales_;
  std::vector<QuantisedMatrix> made_;
  mutable std::vector<float> values_;
};

SyCudaMatrix Shape(const cuda::TileShape& s, int rows) {
  return {static_cast<int32_t>(s.format), rows, s.columns, s.group, s.group_rows, s.zeros};
}

// Every 128 numbers with the scale that makes the largest 448, the largest of e4m3.
void RoundToE4M3(std::vector<double>* values) {
  for (size_t first = 0; first < values->size(); first += 128) {
    double most = 0;
    for (size_t i = first; i < first + 128; ++i) most = std::max(most, std::fabs((*values)[i]));
    const float scale = static_cast<float>(most) / 448.0f;
    for (size_t i = first; i < first + 128; ++i) {
      const double x = static_cast<float>((*values)[i]) / scale;
      int exponent = 0;
      std::frexp(x, &exponent);  // x = m · 2^exponent, m in [1/2, 1): four bits of it
      const double step = std::ldexp(1.0, std::max(exponent - 4, -9));
      (*values)[i] = std::nearbyint(x / step) * step * static_cast<double>(scale);
    }
  }
}

class Layer {
 public:
  Layer(const Form& form, int experts, WeightLayout layout = WeightLayout::kOutIn,
        const char* major = "8")
      : rows_are_e4m3_(form.dtype == DType::kF8E4M3 && *major == '9') {
    ::setenv("SIMT_MAJOR", major, 1);
    EXPECT_EQ(api_.open(0, &context_, &error_), SY_CUDA_OK) << error_.text;
    ::unsetenv("SIMT_MAJOR");
    for (int e = 0; e < experts; ++e) {
      const auto seed = static_cast<uint32_t>(10 * e);
      gate_.emplace_back(form, layout, kWidth, kHidden, seed + 1);
      up_.emplace_back(form, layout, kWidth, kHidden, seed + 2);
      down_.emplace_back(form, layout, kHidden, kWidth, seed + 3);
    }
    const auto gate = *TileShapeOf(gate_[0].view()), down = *TileShapeOf(down_[0].view());
    spec_ = {.hidden = kHidden,
             .intermediate = kWidth,
             .gate_up = Shape(gate, 2 * kWidth),
             .down = Shape(down, kHidden)};
    const cuda::ExpertBlock block(spec_);
    EXPECT_EQ(api_.expert_bytes(&spec_, &error_), block.bytes) << error_.text;
    for (int e = 0; e < experts; ++e) {
      std::vector<std::byte> host(block.bytes);
      for (const bool up : {false, true}) {
        PackTiles((up ? up_ : gate_)[static_cast<size_t>(e)].view(), block.gate_up,
                  [up](int32_t r) { return cuda::GateUpRow(r, up); }, host.data());
      }
      PackTiles(
          down_[static_cast<size_t>(e)].view(), block.down, [](int32_t r) { return r; },
          host.data() + block.down_at);
      void* device = nullptr;
      EXPECT_EQ(api_.allocate(context_, SY_CUDA_DEVICE, block.bytes, &device, &error_), SY_CUDA_OK);
      EXPECT_EQ(api_.upload(context_, device, host.data(), block.bytes, &error_), SY_CUDA_OK);
      blocks_.push_back(device);
    }
    EXPECT_EQ(api_.ffn_create(context_, &spec_, &ffn_, &error_), SY_CUDA_OK) << error_.text;
    x_ = Stored(RandomFloats(kRowsOfAll * kHidden, 5), DType::kBF16);
  }
  ~Layer() {
    api_.ffn_destroy(ffn_);
    for (void* block : blocks_) api_.release(context_, SY_CUDA_DEVICE, block);
    api_.close(context_);
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  struct Pair {
    int row, expert;
  };
  // Every pair's result, [pairs, kHidden]; `waves`: of how many calls the products are.
  std::vector<float> Compute(const std::vector<Pair>& pairs, int waves = 1) {
    std::vector<Pair> order;
    std::vector<SyCudaRun> runs;
    std::vector<int32_t> place(pairs.size());
    for (size_t e = 0; e < blocks_.size(); ++e) {
      const auto first = static_cast<int32_t>(order.size());
      for (size_t p = 0; p < pairs.size(); ++p) {
        if (pairs[p].expert != static_cast<int>(e)) continue;
        place[p] = static_cast<int32_t>(order.size());
        order.push_back(pairs[p]);
      }
      const auto count = static_cast<int32_t>(order.size()) - first;
      if (count > 0) runs.push_back({blocks_[e], first, count});
    }
    const auto n = static_cast<int32_t>(pairs.size());
    out_.resize(pairs.size() * kHidden * 4);
    const SyCudaFrameSize size{
        .rows = kRowsOfAll, .pairs = n, .copies = n, .out_bytes = out_.size()};
    SyCudaFrame frame;
    EXPECT_EQ(api_.ffn_begin(ffn_, &size, &frame, &error_), SY_CUDA_OK) << error_.text;
    // Some rows from the frame's memory, the others from elsewhere.
    const size_t staged = 30 * kHidden * 2;
    std::memcpy(frame.x, x_.data(), staged);
    EXPECT_EQ(api_.ffn_rows(ffn_, 0, 30, frame.x, &error_), SY_CUDA_OK) << error_.text;
    EXPECT_EQ(api_.ffn_rows(ffn_, 30, kRowsOfAll - 30, x_.data() + staged, &error_), SY_CUDA_OK)
        << error_.text;
    for (size_t p = 0; p < pairs.size(); ++p) {
      frame.gather[p] = order[p].row;
      frame.copy_pair[p] = place[p];
      frame.copy_at[p] = p * kHidden * 4;
    }
    frame.sum_first[0] = 0;
    for (int w = 0; w < waves; ++w) {
      const size_t from = runs.size() * static_cast<size_t>(w) / static_cast<size_t>(waves);
      const size_t to = runs.size() * static_cast<size_t>(w + 1) / static_cast<size_t>(waves);
      EXPECT_EQ(
          api_.ffn_compute(ffn_, runs.data() + from, static_cast<int32_t>(to - from), &error_),
          SY_CUDA_OK)
          << error_.text;
      if (waves > 1) {
        EXPECT_EQ(api_.ffn_wait(ffn_, &error_), SY_CUDA_OK);
      }
    }
    const size_t half = out_.size() / 8 * 4;
    const SyCudaOut outs[] = {{out_.data(), 0, half},
                              {out_.data() + half, half, out_.size() - half}};
    EXPECT_EQ(api_.ffn_finish(ffn_, outs, 2, &error_), SY_CUDA_OK) << error_.text;
    int32_t done = 0;
    while (done == 0) {
      EXPECT_EQ(api_.ffn_poll(ffn_, &done, &error_), SY_CUDA_OK) << error_.text;
    }
    std::vector<float> y(pairs.size() * kHidden);
    std::memcpy(y.data(), out_.data(), out_.size());
    return y;
  }

  void Check(const std::vector<Pair>& pairs, const std::vector<float>& y) {
    for (size_t p = 0; p < pairs.size(); ++p) {
      const auto e = static_cast<size_t>(pairs[p].expert);
      std::vector<double> x, inner;
      for (int k = 0; k < kHidden; ++k) {
        x.push_back(At(x_.data(), DType::kBF16, pairs[p].row * kHidden + k));
      }
      if (rows_are_e4m3_) RoundToE4M3(&x);
      for (int i = 0; i < kWidth; ++i) {
        double gate = 0, up = 0;
        for (int k = 0; k < kHidden; ++k) {
          gate += x[static_cast<size_t>(k)] * gate_[e].At(i, k);
          up += x[static_cast<size_t>(k)] * up_[e].At(i, k);
        }
        const double value = gate / (1 + std::exp(-gate)) * up;
        inner.push_back(ToFloat(ToBF16(static_cast<float>(value))));
      }
      if (rows_are_e4m3_) RoundToE4M3(&inner);
      for (int n = 0; n < kHidden; ++n) {
        double sum = 0, size = 0;
        for (int i = 0; i < kWidth; ++i) {
          const double term = inner[static_cast<size_t>(i)] * down_[e].At(n, i);
          sum += term, size += std::fabs(term);
        }
        // A few activations may round to another bf16.
        ASSERT_NEAR(static_cast<double>(y[p * kHidden + static_cast<size_t>(n)]), sum,
                    size / 200 + 1e-9)
            << "pair " << p << " output " << n;
      }
    }
  }

  const bool rows_are_e4m3_;
  const SyCudaApi& api_ = *SyCudaPlugin(SY_CUDA_ABI_VERSION);
  SyCudaContext* context_ = nullptr;
  SyCudaFfn* ffn_ = nullptr;
  SyCudaFfnSpec spec_;
  SyCudaError error_;
  std::vector<Matrix> gate_, up_, down_;
  std::vector<void*> blocks_;
  std::vector<std::byte> x_, out_;
};

std::vector<Layer::Pair> SomePairs(int experts, int n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Layer::Pair> pairs;
  for (int i = 0; i < n; ++i) {
    pairs.push_back({static_cast<int>(random() % kRowsOfAll),
                     static_cast<int>(random()) & 1
                         ? 1
                         : static_cast<int>(random() % static_cast<unsigned>(experts))});
  }
  return pairs;
}

constexpr Form kBf16 = {"bf16", DType::kBF16};
constexpr Form kE4M3 = {.name = "e4m3", .dtype = DType::kF8E4M3, .zero_offset = 128};
constexpr Form kE4M3Rows = {
    .name = "e4m3, a scale a row", .dtype = DType::kF8E4M3, .zero_offset = 1};

TEST(ExpertFfn, EveryFormOfWeights) {
  std::vector<Form> forms{kBf16, kE4M3, kE4M3Rows};
  for (const Form& form : kForms) {
    const bool blocks_of_256 = form.dtype >= DType::kQ4K && form.dtype <= DType::kQ6K;
    if (!blocks_of_256) forms.push_back(form);
  }
  for (const Form& form : forms) {
    SCOPED_TRACE(form.name);
    Layer layer(form, 2);
    const auto pairs = SomePairs(2, 11, 3);
    layer.Check(pairs, layer.Compute(pairs));
  }
}

// wgmma for bf16 and, with rows of e4m3, for e4m3; mma.sync for all else.
TEST(ExpertFfn, EveryFormOnHopper) {
  for (const Form& form : {kBf16, kE4M3, kE4M3Rows, kForms[0]}) {
    SCOPED_TRACE(form.name);
    Layer layer(form, 2, WeightLayout::kOutIn, "9");
    SyCudaDevice about;
    ASSERT_EQ(layer.api_.describe(layer.context_, &about, &layer.error_), SY_CUDA_OK);
    EXPECT_STREQ(about.arithmetic, "cuda-sm90-wgmma");
    const auto pairs = SomePairs(2, 23, 3);
    layer.Check(pairs, layer.Compute(pairs));
  }
}

TEST(ExpertFfn, WeightsAsRowsOfInputs) {
  Layer layer(kBf16, 2, WeightLayout::kInOut);
  const auto pairs = SomePairs(2, 11, 3);
  layer.Check(pairs, layer.Compute(pairs));
}

class ExpertFfnOn : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(ComputeCapability, ExpertFfnOn, ::testing::Values("8", "9"));

TEST_P(ExpertFfnOn, APairHasItsBitsInAnyCompany) {
  for (const Form& form : {kBf16, kE4M3}) {
    SCOPED_TRACE(form.name);
    Layer layer(form, 5, WeightLayout::kOutIn, GetParam());
    const auto all = SomePairs(5, 150, 9);  // expert 1 has runs of 64, and others few rows
    const std::vector<float> together = layer.Compute(all);
    EXPECT_EQ(FirstDifference(layer.Compute(all, 3), together), -1);
    for (const size_t first : {size_t{0}, size_t{77}}) {
      const std::vector<Layer::Pair> some(all.begin() + static_cast<ptrdiff_t>(first),
                                          all.begin() + static_cast<ptrdiff_t>(first) + 20);
      const std::vector<float> apart = layer.Compute(some);
      const auto at = together.begin() + static_cast<ptrdiff_t>(first * kHidden);
      EXPECT_EQ(FirstDifference(apart, {at, at + static_cast<ptrdiff_t>(apart.size())}), -1);
    }
  }
}

TEST(ExpertFfn, SumsAreChainsInOrder) {
  Layer layer(kBf16, 3);
  const std::vector<Layer::Pair> pairs = {{4, 0}, {7, 0}, {4, 1}, {4, 2}};
  const std::vector<float> y = layer.Compute(pairs);
  std::vector<std::byte> out(2 * kHidden * 2 + 2 * kHidden * 4);
  const SyCudaFrameSize size{.rows = kRowsOfAll,
                             .pairs = 4,
                             .sums = 2,
                             .entries = 3,
                             .copies = 2,
                             .out_bytes = out.size()};
  SyCudaFrame frame;
  ASSERT_EQ(layer.api_.ffn_begin(layer.ffn_, &size, &frame, &layer.error_), SY_CUDA_OK);
  ASSERT_EQ(layer.api_.ffn_rows(layer.ffn_, 0, kRowsOfAll, layer.x_.data(), &layer.error_),
            SY_CUDA_OK);
  const int32_t entries[] = {0, 2, 3};
  const float weights[] = {0.3f, 0.7f, -2.0f};
  for (int i = 0; i < 4; ++i) frame.gather[i] = pairs[static_cast<size_t>(i)].row;
  std::copy(entries, entries + 3, frame.entry_pair);
  std::copy(weights, weights + 3, frame.entry_weight);
  frame.sum_first[0] = 0, frame.sum_first[1] = 3, frame.sum_first[2] = 3;  // the second of nothing
  frame.sum_at[0] = kHidden * 2, frame.sum_at[1] = 0;
  frame.copy_pair[0] = 1, frame.copy_pair[1] = -1;
  frame.copy_at[0] = kHidden * 4, frame.copy_at[1] = kHidden * 8;
  const SyCudaRun runs[] = {
      {layer.blocks_[0], 0, 2}, {layer.blocks_[1], 2, 1}, {layer.blocks_[2], 3, 1}};
  ASSERT_EQ(layer.api_.ffn_compute(layer.ffn_, runs, 3, &layer.error_), SY_CUDA_OK);
  const SyCudaOut whole{out.data(), 0, out.size()}, beyond{out.data(), 8, out.size()};
  EXPECT_EQ(layer.api_.ffn_finish(layer.ffn_, &beyond, 1, &layer.error_), SY_CUDA_INVALID);
  ASSERT_EQ(layer.api_.ffn_finish(layer.ffn_, &whole, 1, &layer.error_), SY_CUDA_OK);
  ASSERT_EQ(layer.api_.ffn_wait(layer.ffn_, &layer.error_), SY_CUDA_OK);
  for (int c = 0; c < kHidden; ++c) {
    float sum = 0;
    for (size_t i = 0; i < 3; ++i) {
      sum = std::fma(weights[i], y[static_cast<size_t>(entries[i] * kHidden + c)], sum);
    }
    EXPECT_EQ(At(out.data(), DType::kBF16, kHidden + c), ToFloat(ToBF16(sum)));
    EXPECT_EQ(At(out.data(), DType::kBF16, c), 0.0f);
    EXPECT_EQ(At(out.data(), DType::kF32, kHidden + c), y[static_cast<size_t>(kHidden + c)]);
    EXPECT_EQ(At(out.data(), DType::kF32, 2 * kHidden + c), 0.0f);
  }
}

TEST(ExpertFfn, WhatCannotBeIsSaid) {
  EXPECT_EQ(SyCudaPlugin(SY_CUDA_ABI_VERSION + 1), nullptr);
  Layer layer(kBf16, 1);
  SyCudaContext* other = nullptr;
  EXPECT_EQ(layer.api_.open(7, &other, &layer.error_), SY_CUDA_NO_DEVICE);
  EXPECT_STREQ(layer.error_.text, "there is no device 7; there are 1");
  void* block = nullptr;
  EXPECT_EQ(
      layer.api_.allocate(layer.context_, SY_CUDA_DEVICE, uint64_t{1} << 40, &block, &layer.error_),
      SY_CUDA_NO_MEMORY);
  SyCudaFfnSpec odd = layer.spec_;
  odd.down.rows = 8;
  EXPECT_EQ(layer.api_.expert_bytes(&odd, &layer.error_), 0u);
  const SyCudaFrameSize size{.rows = 1, .pairs = 2, .copies = 0, .out_bytes = 0};
  SyCudaFrame frame;
  ASSERT_EQ(layer.api_.ffn_begin(layer.ffn_, &size, &frame, &layer.error_), SY_CUDA_OK);
  EXPECT_EQ(layer.api_.ffn_rows(layer.ffn_, 0, 2, layer.x_.data(), &layer.error_), SY_CUDA_INVALID);
  const SyCudaRun beyond{layer.blocks_[0], 1, 2};
  EXPECT_EQ(layer.api_.ffn_compute(layer.ffn_, &beyond, 1, &layer.error_), SY_CUDA_INVALID);
  const SyCudaRun twice[] = {{layer.blocks_[0], 0, 2}, {layer.blocks_[0], 0, 2}};
  EXPECT_EQ(layer.api_.ffn_compute(layer.ffn_, twice, 2, &layer.error_), SY_CUDA_INVALID);
}

TEST(PackTiles, WhatIsNotSupportedIsNamed) {
  const auto why = [](WeightView w) { return std::string(TileShapeOf(w).status().message()); };
  EXPECT_NE(why({.dtype = DType::kF16, .out = 8, .in = 64})
                .find("weights of float16 are not supported; CUDA devices take bfloat16"),
            std::string::npos);
  EXPECT_NE(why({.dtype = DType::kI8, .layout = WeightLayout::kInOut, .out = 8, .in = 64})
                .find("as rows of inputs"),
            std::string::npos);
  EXPECT_NE(why({.dtype = DType::kBF16, .out = 8, .in = 60}).find("no multiple of 8"),
            std::string::npos);
}

}  // namespace
}  // namespace switchyard::kernels
