#include "router/graph/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <numeric>

#include "services/base/status.h"
#include "services/model/spec_from_hf.h"
#include "services/model/tensor_names.h"
#include "tests/support/golden.h"

namespace switchyard::router {
namespace {

using testing::HasSubstr;

// Holds every tensor of a backbone as zeros; tests damage what they like.
class FakeSource : public checkpoint::TensorSource {
 public:
  explicit FakeSource(const ModelSpec& spec) {
    size_t most = 0;
    for (const TensorRef& ref : AllTensors(BackboneTensorsOf(spec))) {
      held[ref.name] = {DType::kBF16, ref.shape};
      most = std::max(most, static_cast<size_t>(std::accumulate(ref.shape.begin(), ref.shape.end(),
                                                                int64_t{4}, std::multiplies())));
    }
    zeros_.resize(most);
  }

  const std::vector<std::string>& files() const override { return files_; }
  const std::vector<checkpoint::TensorInfo>& tensors() const override { return infos_; }
  const checkpoint::TensorInfo* Find(std::string_view) const override { return nullptr; }
  absl::Status Map(const std::vector<checkpoint::TensorRange>& ranges) override {
    for (const auto& range : ranges) {
      if (!held.contains(range.name)) return NotFound("no tensor {}", range.name);
    }
    return absl::OkStatus();
  }
  absl::StatusOr<checkpoint::MappedTensor> Get(
      const checkpoint::TensorRange& range) const override {
    const auto it = held.find(range.name);
    if (it == held.end()) return NotFound("no tensor {}", range.name);
    return checkpoint::MappedTensor{zeros_.data(), it->second.first, it->second.second};
  }
  absl::Status Read(int, uint64_t, void*, size_t) const override {
    return Unimplemented("no files here");
  }

  std::map<std::string, std::pair<DType, std::vector<int64_t>>> held;

 private:
  std::vector<std::byte> zeros_;
  std::vector<std::string> files_;
  std::vector<checkpoint::TensorInfo> infos_;
};

ModelSpec SpecOf(const std::string& name) {
  auto spec = LoadSpec(test::SourcePath(name));
  EXPECT_TRUE(spec.ok()) << spec.status();
  return *std::move(spec);
}

TEST(RouterWeightsTest, BindsTheRolesOfMla) {
  const ModelSpec spec = SpecOf("models/tiny-r1");
  FakeSource source(spec);
  const auto weights = RouterWeights::Load(spec, source);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->embedding.out, spec.vocab);
  ASSERT_EQ(weights->layers.size(), 5u);
  const LayerWeights& dense = weights->layers[0];
  EXPECT_FALSE(dense.gate.weight);
  EXPECT_EQ(dense.mlp.gate.out, 512);
  const LayerWeights& moe = weights->layers[1];
  EXPECT_EQ(moe.gate.correction_bias.size(), 128u);
  EXPECT_EQ(moe.mlp.gate.out, 32);
  EXPECT_FALSE(moe.gqa.q);
  // kv_b_proj is cut into heads of [32 nope | 32 v] rows of 64.
  ASSERT_EQ(moe.mla.key_up.size(), 6u);
  ASSERT_EQ(moe.mla.value_up.size(), 6u);
  const std::byte* kv_b = moe.mla.key_up[0].data;
  EXPECT_EQ(moe.mla.value_up[0].data, kv_b + 32 * 64 * 2);
  EXPECT_EQ(moe.mla.key_up[1].data, kv_b + 64 * 64 * 2);
  EXPECT_EQ(moe.mla.key_up[1].layout, WeightLayout::kInOut);
  EXPECT_EQ(moe.mla.key_up[1].in, 32);
  EXPECT_EQ(moe.mla.key_up[1].out, 64);
  EXPECT_EQ(moe.mla.value_up[1].in, 64);
  EXPECT_EQ(moe.mla.value_up[1].out, 32);
}

TEST(RouterWeightsTest, BindsBiasesAndSinks) {
  const ModelSpec spec = SpecOf("tests/golden/models/gpt-oss-tiny");
  FakeSource source(spec);
  const auto weights = RouterWeights::Load(spec, source);
  ASSERT_TRUE(weights.ok()) << weights.status();
  const LayerWeights& layer = weights->layers[3];
  EXPECT_EQ(layer.gqa.sinks.size, 4);
  EXPECT_EQ(layer.gqa.q_bias.size, 64);
  EXPECT_EQ(layer.gqa.o_bias.size, 64);
  EXPECT_EQ(layer.gate.bias.size, 8);
  EXPECT_FALSE(layer.mlp);
}

TEST(RouterWeightsTest, TiedHeadIsTheEmbedding) {
  ModelSpec spec = SpecOf("tests/golden/models/qwen3-moe-tiny");
  spec.tied_embeddings = true;
  FakeSource source(spec);
  EXPECT_FALSE(source.held.contains("lm_head.weight"));
  const auto weights = RouterWeights::Load(spec, source);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->lm_head.data, weights->embedding.data);
  EXPECT_EQ(weights->lm_head.out, spec.vocab);
}

TEST(RouterWeightsTest, ErrorsNameTheTensor) {
  const ModelSpec spec = SpecOf("models/tiny-r1");
  const std::string name = "model.layers.2.self_attn.kv_b_proj.weight";
  {
    FakeSource source(spec);
    source.held.erase(name);
    const absl::Status status = RouterWeights::Load(spec, source).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(ToStd(status.message()), HasSubstr(name));
  }
  {
    FakeSource source(spec);
    source.held[name].second = {384, 63};
    const absl::Status status = RouterWeights::Load(spec, source).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(ToStd(status.message()), HasSubstr(name));
    EXPECT_THAT(ToStd(status.message()), HasSubstr("63"));
    EXPECT_THAT(ToStd(status.message()), HasSubstr("64"));
  }
  {
    FakeSource source(spec);
    source.held[name].first = DType::kF8E4M3;
    const absl::Status status = RouterWeights::Load(spec, source).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(ToStd(status.message()), HasSubstr(name));
  }
}

}  // namespace
}  // namespace switchyard::router
