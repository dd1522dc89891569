// The backbone's functions (backbone_abi.h) over an emulated device: layer by layer against the
// router's own graph in float32, and the same bits in any batch.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "router/graph/attention.h"
#include "router/graph/gate.h"
#include "router/graph/lm_head.h"
#include "router/graph/mlp.h"
#include "tests/support/decoder_harness.h"
#include "tests/support/golden.h"
#include "tests/unit/services/kernels/cuda/device_model.h"

namespace switchyard::test {
namespace {

// Rows of a sequence: `count` tokens from `position` on. Its blocks are its own, in each group.
struct Chunk {
  int sequence = 0;
  int32_t position = 0, count = 0;
};

constexpr int kTableBlocks = 4;

// A step's batch, as the device and as the router's graph take it.
class Batch {
 public:
  Batch(const ModelSpec& spec, int groups, const std::vector<Chunk>& chunks) {
    for (int g = 0; g < groups; ++g) {
      for (const Chunk& c : chunks) {
        std::vector<int32_t>& table = tables_.emplace_back();
        for (int b = 0; b < kTableBlocks; ++b) {  // scattered
          table.push_back(((c.sequence * groups + g) * kTableBlocks + b) * 37 %
                          DeviceModel::kBlocks);
        }
      }
    }
    for (const auto& table : tables_) of_sequences_.push_back(table.data());
    for (size_t i = 0; i < chunks.size(); ++i) {
      const Chunk& c = chunks[i];
      sequence_rows_.push_back(c.count);
      for (int32_t r = 0; r < c.count; ++r) {
        const int32_t position = c.position + r;
        tokens.push_back((c.sequence * 977 + position * 131 + 7) % spec.vocab);
        positions.push_back(position);
        chunk_of_row_.push_back(i);
        logit_rows.push_back(static_cast<int32_t>(logit_rows.size()));
      }
    }
    chunks_ = chunks.size();
  }
  int32_t rows() const { return static_cast<int32_t>(tokens.size()); }
  SyCudaStep step() const {
    return {.rows = rows(),
            .sequences = static_cast<int32_t>(sequence_rows_.size()),
            .logits = static_cast<int32_t>(logit_rows.size()),
            .tokens = tokens.data(),
            .positions = positions.data(),
            .sequence_rows = sequence_rows_.data(),
            .tables = of_sequences_.data(),
            .logit_rows = logit_rows.data()};
  }
  std::vector<const int32_t*> TablesOfRows(int group) const {
    std::vector<const int32_t*> of_rows;
    for (const size_t chunk : chunk_of_row_) {
      of_rows.push_back(of_sequences_[static_cast<size_t>(group) * chunks_ + chunk]);
    }
    return of_rows;
  }

  std::vector<int32_t> tokens, positions, logit_rows;

 private:
  size_t chunks_ = 0;
  std::vector<int32_t> sequence_rows_;
  std::vector<size_t> chunk_of_row_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<const int32_t*> of_sequences_;
};

// What stands in for the experts: a function of the row and of what the gate chose for it.
void Expert(const ModelSpec& spec, int32_t rows, const SyCudaRouted& routed) {
  const int top_k = spec.gate.top_k;
  for (int32_t r = 0; r < rows; ++r) {
    for (int c = 0; c < spec.hidden; ++c) {
      float sum = 0;
      for (int k = 0; k < top_k; ++k) {
        sum += routed.weights[r * top_k + k] *
               static_cast<float>((routed.ids[r * top_k + k] * 31 + c * 7) % 17 - 8);
      }
      const uint32_t bits = static_cast<uint32_t>(routed.x[r * spec.hidden + c]) << 16;
      float x;
      std::memcpy(&x, &bits, sizeof(x));
      routed.sums[r * spec.hidden + c] = 0.05f * (sum + x);
    }
  }
}

#define SY_EXPECT_OK(call) EXPECT_EQ(call, SY_CUDA_OK) << device.error().text

// A whole step on the device: logits of all rows.
std::vector<float> Step(DeviceModel& device, const std::vector<Chunk>& chunks) {
  const ModelSpec& spec = device.spec();
  const Batch batch(spec, device.kv().groups(), chunks);
  const SyCudaBackboneApi& api = device.backbone_api();
  SyCudaBackbone* const b = device.backbone();
  SyCudaError* const error = &device.error();
  const SyCudaStep step = batch.step();
  SY_EXPECT_OK(api.begin(b, &step, error));
  for (int l = 0; l < spec.num_layers(); ++l) {
    SY_EXPECT_OK(api.attention(b, l, error));
    if (!spec.layers[static_cast<size_t>(l)].moe) {
      SY_EXPECT_OK(api.dense(b, l, error));
      continue;
    }
    SyCudaRouted routed;
    SY_EXPECT_OK(api.route(b, l, &routed, error));
    SY_EXPECT_OK(api.wait_routed(b, error));
    SY_EXPECT_OK(api.shared(b, l, error));
    Expert(spec, batch.rows(), routed);
    SY_EXPECT_OK(api.combine(b, l, error));
  }
  const float* logits = nullptr;
  SY_EXPECT_OK(api.head(b, &logits, error));
  SY_EXPECT_OK(api.wait(b, error));
  return {logits, logits + int64_t{batch.rows()} * spec.vocab};
}

// The router's graph on a CPU in float32, over a cache of bf16.
class Reference {
 public:
  Reference(const ModelSpec& spec, const router::RouterWeights& weights)
      : spec_(spec), weights_(weights), rope_(spec.attention.rope, DeviceModel::kPositions) {
    rope_.Reserve(DeviceModel::kPositions);
  }
  // Residuals [rows, hidden].
  void Attention(int layer, const Batch& batch, std::vector<float>& residual) {
    const auto tables = batch.TablesOfRows(kv_.group(layer));
    attention_->Run(layer, Weights(layer), {batch.rows(), batch.positions.data(), tables.data()},
                    residual.data());
  }
  std::vector<float> Normed(int layer, int64_t rows, const std::vector<float>& residual) {
    std::vector<float> normed(residual.size());
    compute_.RmsNorm(residual.data(), spec_.hidden, rows, spec_.hidden,
                     Weights(layer).post_attention_norm, spec_.norm_eps,
                     {normed.data(), DType::kF32, spec_.hidden});
    return normed;
  }
  std::vector<float> Mlp(int layer, int64_t rows, const std::vector<float>& normed) {
    std::vector<float> out(normed.size());
    if (!Weights(layer).mlp) return out;
    mlp_.Run(Weights(layer).mlp, {normed.data(), DType::kF32, spec_.hidden}, rows, out.data());
    return out;
  }
  void Choose(int layer, int64_t rows, const std::vector<float>& normed, std::vector<int32_t>& ids,
              std::vector<float>& weights) {
    const int64_t experts = spec_.experts.count, top_k = spec_.gate.top_k;
    const int64_t stride = experts + router::GateScratch(spec_.gate, spec_.experts.count);
    std::vector<float> logits(static_cast<size_t>(rows * stride));
    compute_.MatMul({.x = {normed.data(), DType::kF32, spec_.hidden},
                     .rows = rows,
                     .w = Weights(layer).gate.weight,
                     .bias = Weights(layer).gate.bias,
                     .y = logits.data(),
                     .y_stride = stride});
    ids.resize(static_cast<size_t>(rows * top_k));
    weights.resize(ids.size());
    for (int64_t r = 0; r < rows; ++r) {
      float* const row = logits.data() + r * stride;
      router::SelectExperts(spec_.gate, {row, static_cast<size_t>(experts)},
                            Weights(layer).gate.correction_bias, row + experts,
                            ids.data() + r * top_k, weights.data() + r * top_k);
    }
  }
  std::vector<float> Logits(const Batch& batch, const std::vector<float>& residual) {
    std::vector<float> logits(static_cast<size_t>(batch.rows()) * static_cast<size_t>(spec_.vocab));
    head_.Run(weights_, residual.data(), batch.logit_rows, 0, logits.data());
    return logits;
  }

 private:
  const router::LayerWeights& Weights(int layer) const {
    return weights_.layers[static_cast<size_t>(layer)];
  }

  const ModelSpec& spec_;
  const router::RouterWeights& weights_;
  RopeTable rope_;
  kernels::ThreadPool pool_{1};
  kernels::Compute compute_{kernels::SupportedIsas().back(), pool_};
  router::KvStorage kv_ = *router::KvStorage::Create(spec_, DType::kBF16, DeviceModel::kBlocks);
  const router::GraphContext context_{
      .spec = spec_, .compute = compute_, .rope = rope_, .kv = kv_, .dtype = DType::kF32};
  std::unique_ptr<router::Attention> attention_ = router::MakeAttention(context_);
  router::Mlp mlp_{context_};
  router::LmHead head_{context_};
};

// |found - wanted| of each row against the length of what was added to `before`: bf16 rounds by
// 2^-9 at most, and attention with a feed-forward behind it has some sixteen roundings one after
// the other.
void ExpectNear(std::span<const float> found, std::span<const float> wanted,
                std::span<const float> before, int width, const std::string& what) {
  for (size_t at = 0; at < wanted.size(); at += static_cast<size_t>(width)) {
    double apart = 0, length = 0;
    for (size_t i = at; i < at + static_cast<size_t>(width); ++i) {
      const double difference = static_cast<double>(found[i]) - static_cast<double>(wanted[i]);
      const double added =
          static_cast<double>(wanted[i]) - (before.empty() ? 0.0 : static_cast<double>(before[i]));
      apart += difference * difference, length += added * added;
    }
    ASSERT_LE(std::sqrt(apart), 16.0 / 512 * std::sqrt(length))
        << what << ", row " << at / static_cast<size_t>(width);
  }
}

class CudaBackbone : public ::testing::TestWithParam<std::string> {
 protected:
  static std::string Directory() {
    return GetParam() == "tiny-r1" ? SourcePath("models/tiny-r1")
                                   : LoadGolden(GetParam()).directory;
  }
  const LoadedModel model_{Directory()};
  DeviceModel device_{model_.spec, model_.weights};
};

// Each part begins with the same numbers as the reference's.
TEST_P(CudaBackbone, EveryLayerIsTheGraphs) {
  DeviceModel& device = device_;
  const ModelSpec& spec = model_.spec;
  Reference reference(spec, model_.weights);
  const SyCudaBackboneApi& api = device.backbone_api();
  SyCudaBackbone* const b = device.backbone();
  SyCudaError* const error = &device.error();
  for (const std::vector<Chunk>& chunks : {std::vector<Chunk>{{0, 0, 67}, {1, 0, 5}},
                                           std::vector<Chunk>{{1, 5, 1}, {2, 0, 3}, {0, 67, 2}}}) {
    const Batch batch(spec, device.kv().groups(), chunks);
    const SyCudaStep step = batch.step();
    SY_EXPECT_OK(api.begin(b, &step, error));
    SY_EXPECT_OK(api.wait(b, error));
    const size_t numbers = static_cast<size_t>(batch.rows()) * static_cast<size_t>(spec.hidden);
    const std::span<float> on_device(api.residual(b), numbers);  // emulated: it can be read
    std::vector<float> residual(on_device.begin(), on_device.end());
    for (int64_t r = 0; r < batch.rows(); ++r) {
      std::vector<float> row(static_cast<size_t>(spec.hidden));
      kernels::RowToFloat(model_.weights.embedding, batch.tokens[static_cast<size_t>(r)],
                          row.data());
      ASSERT_TRUE(std::equal(row.begin(), row.end(), residual.begin() + r * spec.hidden));
    }
    for (int l = 0; l < spec.num_layers(); ++l) {
      const std::string layer = "layer " + std::to_string(l);
      SY_EXPECT_OK(api.attention(b, l, error));
      const std::vector<float> before = residual;
      reference.Attention(l, batch, residual);
      if (!spec.layers[static_cast<size_t>(l)].moe) {
        SY_EXPECT_OK(api.dense(b, l, error));
        SY_EXPECT_OK(api.wait(b, error));
        const auto mlp =
            reference.Mlp(l, batch.rows(), reference.Normed(l, batch.rows(), residual));
        for (size_t i = 0; i < numbers; ++i) residual[i] += mlp[i];
        ExpectNear(on_device, residual, before, spec.hidden, layer);
      } else {
        SyCudaRouted routed;
        SY_EXPECT_OK(api.route(b, l, &routed, error));
        SY_EXPECT_OK(api.wait_routed(b, error));
        ExpectNear(on_device, residual, before, spec.hidden, layer + ", attention");
        // From here on from the device's own, so that the same experts are chosen.
        residual.assign(on_device.begin(), on_device.end());
        const auto normed = reference.Normed(l, batch.rows(), residual);
        std::vector<int32_t> ids;
        std::vector<float> weights;
        reference.Choose(l, batch.rows(), normed, ids, weights);
        for (size_t i = 0; i < ids.size(); ++i) {
          ASSERT_EQ(routed.ids[i], ids[i]) << layer;
          ASSERT_NEAR(routed.weights[i], weights[i], 1e-5f * spec.gate.scale) << layer;
        }
        SY_EXPECT_OK(api.shared(b, l, error));
        Expert(spec, batch.rows(), routed);
        SY_EXPECT_OK(api.combine(b, l, error));
        SY_EXPECT_OK(api.wait(b, error));
        const std::vector<float> attended = residual;
        const auto shared = reference.Mlp(l, batch.rows(), normed);
        for (size_t i = 0; i < numbers; ++i)
          residual[i] = (residual[i] + routed.sums[i]) + shared[i];
        ExpectNear(on_device, residual, attended, spec.hidden, layer + ", experts");
      }
      std::copy(residual.begin(), residual.end(), on_device.begin());
    }
    const float* logits = nullptr;
    SY_EXPECT_OK(api.head(b, &logits, error));
    SY_EXPECT_OK(api.wait(b, error));
    const std::vector<float> wanted = reference.Logits(batch, residual);
    ExpectNear({logits, wanted.size()}, wanted, {}, spec.vocab, "logits");
  }
}

// In one step with others, alone, and in pieces.
TEST_P(CudaBackbone, ASequenceHasItsBitsInAnyCompany) {
  const auto vocab = static_cast<size_t>(model_.spec.vocab);
  const std::vector<float> together = Step(device_, {{0, 0, 40}, {1, 0, 30}, {2, 0, 1}});
  const auto rows = [&](const std::vector<float>& logits, size_t first, size_t count) {
    return std::vector<float>(logits.begin() + static_cast<ptrdiff_t>(first * vocab),
                              logits.begin() + static_cast<ptrdiff_t>((first + count) * vocab));
  };
  for (const float x : together) ASSERT_TRUE(std::isfinite(x));
  DeviceModel other(model_.spec, model_.weights);
  EXPECT_EQ(Step(other, {{1, 0, 30}}), rows(together, 40, 30));
  EXPECT_EQ(Step(other, {{2, 0, 1}, {0, 0, 33}}), [&] {
    std::vector<float> both = rows(together, 70, 1);
    const std::vector<float> first = rows(together, 0, 33);
    both.insert(both.end(), first.begin(), first.end());
    return both;
  }());
  EXPECT_EQ(Step(other, {{0, 33, 7}}), rows(together, 33, 7));
}

INSTANTIATE_TEST_SUITE_P(Models, CudaBackbone,
                         ::testing::Values("tiny-r1", "deepseek-v3-tiny",
                                           "deepseek-v3-noqlora-tiny", "deepseek-v2-tiny",
                                           "qwen3-moe-tiny", "olmoe-clip-tiny", "mixtral-swa-tiny",
                                           "gpt-oss-tiny"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(CudaBackboneErrors, WhatDoesNotFitIsNamed) {
  EXPECT_EQ(SyCudaBackbonePlugin(SY_CUDA_BACKBONE_ABI_VERSION + 1), nullptr);
  const LoadedModel model(LoadGolden("deepseek-v3-tiny").directory);
  DeviceModel device(model.spec, model.weights);
  const SyCudaBackboneApi& api = device.backbone_api();
  SyCudaError& error = device.error();
  auto [spec, layers] = device.Pack(model.weights);
  SyCudaBackbone* none = nullptr;
  layers[1].out.shape.columns += 8;
  EXPECT_EQ(api.create(device.context(), &spec, layers.data(), &none, &error), SY_CUDA_INVALID);
  EXPECT_STREQ(error.text, "layer 1: out is missing or of another shape");
  EXPECT_EQ(none, nullptr);

  const Batch batch(model.spec, device.kv().groups(), {{0, 0, 3}});
  SyCudaStep step = batch.step();
  ASSERT_EQ(api.begin(device.backbone(), &step, &error), SY_CUDA_OK) << error.text;
  const int layers_there = model.spec.num_layers();
  EXPECT_EQ(api.attention(device.backbone(), layers_there, &error), SY_CUDA_INVALID);
  EXPECT_EQ(api.attention(device.backbone(), -1, &error), SY_CUDA_INVALID);
  EXPECT_EQ(api.dense(device.backbone(), layers_there - 1, &error), SY_CUDA_INVALID);
  EXPECT_NE(std::string(error.text).find("without experts"), std::string::npos) << error.text;
  SyCudaRouted routed;
  EXPECT_EQ(api.route(device.backbone(), 0, &routed, &error), SY_CUDA_INVALID);
  EXPECT_EQ(api.copy_block(device.backbone(), 3, 3, &error), SY_CUDA_INVALID);
  const int32_t beyond[] = {0, 1, 3}, tokens[] = {0, model.spec.vocab, 0}, rows[] = {2};
  step.positions = beyond;
  EXPECT_EQ(api.begin(device.backbone(), &step, &error), SY_CUDA_INVALID);
  EXPECT_STREQ(error.text,
               ("row 2: token " + std::to_string(batch.tokens[2]) + " at position 3").c_str());
  step = batch.step(), step.tokens = tokens;
  EXPECT_EQ(api.begin(device.backbone(), &step, &error), SY_CUDA_INVALID);
  step = batch.step(), step.sequence_rows = rows;
  EXPECT_EQ(api.begin(device.backbone(), &step, &error), SY_CUDA_INVALID);
  EXPECT_STREQ(error.text, "sequences have 2 rows, the step 3");
}

}  // namespace
}  // namespace switchyard::test
