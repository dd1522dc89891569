#include "services/model/tensor_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "services/base/file.h"
#include "services/base/text.h"
#include "services/model/spec_from_hf.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

std::string Root() { return std::getenv("SWITCHYARD_SOURCE_DIR"); }

std::string Directory(const std::string& model) {
  return Root() + (model == "tiny-r1" ? "/models/" : "/tests/golden/models/") + model;
}

// name → shape of a checkpoint's files, read by hand so that this test stands on nothing of ours.
std::map<std::string, std::vector<int64_t>> Shapes(const std::string& model) {
  std::map<std::string, std::vector<int64_t>> out;
  for (const auto& entry : std::filesystem::directory_iterator(Directory(model))) {
    if (entry.path().extension() != ".safetensors") continue;
    const std::string file = *ReadFile(entry.path().string(), 1 << 30);
    uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof length);
    const auto header = nlohmann::json::parse(file.substr(8, length));
    for (const auto& [name, tensor] : header.items()) {
      if (name != "__metadata__") out[name] = tensor["shape"].get<std::vector<int64_t>>();
    }
  }
  return out;
}

std::vector<std::string> AllModels() {
  std::vector<std::string> out = {"tiny-r1"};
  for (const auto& entry : std::filesystem::directory_iterator(Root() + "/tests/golden/models")) {
    out.push_back(entry.path().filename().string());
  }
  return out;
}

// Every tensor of a checkpoint has a role, with its shape, and every role has its tensor.
void ExpectExactCover(const std::string& model) {
  const auto spec = LoadSpec(Directory(model));
  ASSERT_TRUE(spec.ok()) << spec.status();
  std::map<std::string, std::vector<int64_t>> named;
  for (const TensorRef& ref : AllTensors(BackboneTensorsOf(*spec))) {
    EXPECT_TRUE(named.emplace(ref.name, ref.shape).second) << ref.name << " twice";
  }
  for (int layer = 0; layer < spec->num_layers(); ++layer) {
    if (!spec->layers[static_cast<size_t>(layer)].moe) continue;
    for (int expert = 0; expert < spec->experts.count; ++expert) {
      for (const TensorSlice& s : AllSlices(ExpertTensorsOf(*spec, layer, expert))) {
        EXPECT_LE(s.first + s.count, s.tensor.shape[0]);
        const bool is_new = named.emplace(s.tensor.name, s.tensor.shape).second;
        EXPECT_TRUE(is_new || spec->experts.stacked) << s.tensor.name << " twice";
      }
    }
  }
  EXPECT_EQ(named, Shapes(model));
}

TEST(TensorNames, CoverEveryGoldenCheckpointExactly) {
  const std::vector<std::string> models = AllModels();
  EXPECT_GE(models.size(), 17u);
  for (const std::string& model : models) {
    SCOPED_TRACE(model);
    ExpectExactCover(model);
  }
}

TEST(TensorNames, MixtralsExpertsAreGateDownUp) {
  const auto spec = LoadSpec(Directory("mixtral-tiny"));
  ASSERT_TRUE(spec.ok());
  const ExpertTensors t = ExpertTensorsOf(*spec, 2, 7);
  EXPECT_EQ(t.gate.tensor.name, "model.layers.2.block_sparse_moe.experts.7.w1.weight");
  EXPECT_EQ(t.down.tensor.name, "model.layers.2.block_sparse_moe.experts.7.w2.weight");
  EXPECT_EQ(t.up.tensor.name, "model.layers.2.block_sparse_moe.experts.7.w3.weight");
}

TEST(TensorNames, TiedHeadIsTheEmbedding) {
  auto spec = LoadSpec(Directory("mixtral-tiny"));
  ASSERT_TRUE(spec.ok());
  spec->tied_embeddings = true;
  const BackboneTensors t = BackboneTensorsOf(*spec);
  EXPECT_EQ(t.lm_head.name, t.embedding.name);
  size_t embeddings = 0;
  for (const TensorRef& ref : AllTensors(t)) embeddings += ref.name == t.embedding.name ? 1 : 0;
  EXPECT_EQ(embeddings, 1u);
}

TEST(CheckTensor, NamesShapesAndDtypes) {
  const TensorRef ref{"a.weight", {2, 3}};
  EXPECT_TRUE(CheckTensor(ref, DType::kF16, {2, 3}).ok());
  EXPECT_THAT(std::string(ToStd(CheckTensor(ref, DType::kBF16, {3, 2}).message())),
              HasSubstr("tensor a.weight: shape is [3, 2], expected [2, 3]"));
  EXPECT_THAT(std::string(ToStd(CheckTensor(ref, DType::kF8E4M3, {2, 3}).message())),
              HasSubstr("dtype float8_e4m3 is not supported; supported: float32"));
  EXPECT_TRUE(CheckTensor({"b", {2, 256}}, DType::kQ6K, {2, 256}).ok());
  EXPECT_THAT(std::string(ToStd(CheckTensor({"b", {2, 96}}, DType::kQ6K, {2, 96}).message())),
              HasSubstr("tensor b: rows of 96 values are not whole blocks of 256 (Q6_K)"));
  EXPECT_THAT(std::string(ToStd(CheckTensor({"n", {64}}, DType::kQ8_0, {64}).message())),
              HasSubstr("tensor n: dtype Q8_0 is not supported"));
}

TEST(LayerOfTensor, ReadsTheNumber) {
  EXPECT_EQ(LayerOfTensor("model.layers.61.mlp.gate.weight"), 61);
  EXPECT_EQ(LayerOfTensor("model.norm.weight"), -1);
  EXPECT_EQ(LayerOfTensor("model.layers.x.y"), -1);
  EXPECT_EQ(LayerOfTensor("model.layers.3"), -1);
  EXPECT_EQ(LayerOfTensor("model.layers.99999999999.x"), -1);
}

}  // namespace
}  // namespace switchyard
