#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "services/model/fingerprint.h"
#include "services/model/model_config.h"
#include "services/model/spec_from_hf.h"
#include "services/model/text_fingerprint.h"
#include "tests/support/gguf_writer.h"

namespace switchyard {
namespace {

using test::GgufWriter;
using ::testing::HasSubstr;

// Every file that tests/support/make_gguf.py wrote.
std::vector<std::string> Files() {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(SY_GGUF_MODELS)) {
    files.push_back(entry.path().string());
  }
  std::ranges::sort(files);
  return files;
}

// The Hugging Face directory of "…/NAME.gguf" or "…/NAME.whole.gguf".
std::string DirectoryOf(const std::string& file) {
  std::string name = std::filesystem::path(file).filename().string();
  name.resize(name.find('.'));
  const std::string root = std::getenv("SWITCHYARD_SOURCE_DIR");
  return root + (name == "tiny-r1" ? "/models/" : "/tests/golden/models/") + name;
}

TEST(ConfigFromGguf, GivesTheSpecOfTheSameModelsConfigJson) {
  ASSERT_GE(Files().size(), 14u);
  for (const std::string& file : Files()) {
    SCOPED_TRACE(file);
    const auto spec = LoadSpec(file);
    ASSERT_TRUE(spec.ok()) << spec.status();
    ModelSpec want = *LoadSpec(DirectoryOf(file));
    if (want.attention.kind == AttentionKind::kMla) {
      want.attention.split_kv_b = file.find(".whole.") == std::string::npos;
    }
    if (want.family == Family::kMixtral) want.attention.rope.layout = RopeLayout::kInterleaved;
    if (want.family == Family::kGptOss) {
      want.experts.stacked = false;
      want.experts.swiglu_limit = 7;
    }
    EXPECT_EQ(CanonicalText(*spec), CanonicalText(want));
    EXPECT_EQ(spec->weight_dtype, want.weight_dtype);
    EXPECT_EQ(spec->bos_id, want.bos_id);
    EXPECT_EQ(spec->eos_ids, want.eos_ids);
  }
}

class GgufMetadata : public ::testing::Test {
 protected:
  static GgufWriter Common(const char* architecture) {
    const std::string a = std::string(architecture) + ".";
    return GgufWriter()
        .String("general.architecture", architecture)
        .U32(a + "block_count", 2)
        .U32(a + "context_length", 64)
        .U32(a + "embedding_length", 64)
        .U32(a + "feed_forward_length", 32)
        .U32(a + "vocab_size", 100)
        .U32(a + "attention.head_count", 4)
        .F32(a + "attention.layer_norm_rms_epsilon", 1e-5f)
        .U32(a + "expert_used_count", 2);
  }
  static GgufWriter Olmoe() { return Common("olmoe").U32("olmoe.expert_count", 8); }
  static GgufWriter Deepseek() {
    return Common("deepseek2")
        .U32("deepseek2.expert_count", 8)
        .U32("deepseek2.expert_feed_forward_length", 16)
        .U32("deepseek2.attention.kv_lora_rank", 32)
        .U32("deepseek2.rope.dimension_count", 8)
        .U32("deepseek2.attention.key_length_mla", 24)
        .U32("deepseek2.attention.value_length_mla", 16);
  }
  static absl::StatusOr<ModelSpec> Spec(const GgufWriter& writer) {
    std::istringstream in(writer.Bytes());
    const auto header = gguf::ParseHeader(in, writer.Bytes().size(), "m.gguf");
    if (!header.ok()) return header.status();
    const auto config = ConfigFromGguf({*header});
    if (!config.ok()) return config.status();
    return SpecFromConfig(*config);
  }
  static std::string Problem(const GgufWriter& writer) {
    return std::string(Spec(writer).status().message());
  }
};

TEST_F(GgufMetadata, DefaultsAreThoseOfLlamaCpp) {
  const auto olmoe = Spec(Olmoe());
  ASSERT_TRUE(olmoe.ok()) << olmoe.status();
  EXPECT_EQ(olmoe->attention.rope.theta, 10000.0);
  EXPECT_EQ(olmoe->attention.kv_heads, 4);
  EXPECT_TRUE(olmoe->tied_embeddings);
  EXPECT_FALSE(olmoe->gate.normalise);
  const auto v2 = Spec(Deepseek());
  ASSERT_TRUE(v2.ok()) << v2.status();
  EXPECT_EQ(v2->family, Family::kDeepseekV2);
  EXPECT_EQ(v2->gate.groups, 1);
  EXPECT_EQ(v2->gate.scale, 1.0f);
  EXPECT_EQ(v2->attention.qk_nope_head_dim, 16);
  EXPECT_TRUE(v2->attention.split_kv_b);
  const auto v3 = Spec(Deepseek().U32("deepseek2.expert_gating_func", 2));
  EXPECT_EQ(v3->family, Family::kDeepseekV3);
}

TEST_F(GgufMetadata, LayersForPredictionAreSkipped) {
  const auto spec = Spec(Olmoe().U32("olmoe.nextn_predict_layers", 1));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->num_layers(), 1);
}

TEST_F(GgufMetadata, ListsOfOneValueALayerCountAsTheValue) {
  const auto list = [](std::vector<uint32_t> values) {
    return Olmoe().Numbers("olmoe.attention.head_count_kv", 4, values);
  };
  EXPECT_EQ(Spec(list({2, 2}))->attention.kv_heads, 2);
  EXPECT_THAT(Problem(list({2, 4})), HasSubstr("another value from layer to layer"));
}

TEST_F(GgufMetadata, SeveralTokensEndAText) {
  const auto spec =
      Spec(Olmoe()
               .Strings("tokenizer.ggml.tokens", {"a", "<|endoftext|>", "b", "<|im_end|>"})
               .U32("tokenizer.ggml.eos_token_id", 3)
               .U32("tokenizer.ggml.eot_token_id", 2));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_THAT(spec->eos_ids, ::testing::ElementsAre(3, 2, 1));
}

TEST_F(GgufMetadata, NamesTheKeyThatIsMissingOrNotSupported) {
  EXPECT_THAT(Problem(GgufWriter()), HasSubstr("m.gguf: general.architecture is missing"));
  EXPECT_THAT(Problem(GgufWriter().String("general.architecture", "gemma4")),
              HasSubstr("\"gemma4\"; supported: deepseek2, qwen3moe, olmoe, llama, gpt-oss"));
  EXPECT_THAT(Problem(Olmoe().String("general.type", "adapter")), HasSubstr("general.type"));
  EXPECT_THAT(Problem(Common("olmoe")), HasSubstr("olmoe.expert_count is missing"));
  EXPECT_THAT(Problem(Common("llama")), HasSubstr("llama without experts"));
  EXPECT_THAT(
      Problem(Olmoe().U32("olmoe.rope.dimension_count", 8).U32("olmoe.attention.key_length", 16)),
      HasSubstr("olmoe.rope.dimension_count is 8"));
  EXPECT_THAT(Problem(Olmoe().String("olmoe.rope.scaling.type", "longrope")),
              HasSubstr("\"longrope\"; supported: none, linear, yarn"));
  EXPECT_THAT(Problem(Olmoe().String("olmoe.rope.scaling.type", "yarn")),
              HasSubstr("original_context_length is missing"));
  EXPECT_THAT(Problem(Deepseek().U32("deepseek2.expert_gating_func", 4)),
              HasSubstr("expert_gating_func is 4"));
  EXPECT_THAT(Problem(Olmoe().Tensor("blk.0.attn_q.bias", {64}, 0, std::string(256, 'x'))),
              HasSubstr("biases of olmoe"));
  EXPECT_THAT(Problem(Olmoe().String("olmoe.expert_count", "8")), HasSubstr("twice"));
}

TEST_F(GgufMetadata, IsWhatTheTextFingerprintIsOf) {
  const std::string path =
      ::testing::TempDir() + "/fingerprint." + std::to_string(::getpid()) + ".gguf";
  const auto of = [&](const GgufWriter& writer) {
    std::ofstream(path, std::ios::binary) << writer.Bytes();
    return TextFingerprint(path).value();
  };
  const std::string first = of(Olmoe());
  EXPECT_EQ(of(Olmoe().Tensor("t", {8}, 0, std::string(32, 'x'))).size(), first.size());
  EXPECT_NE(of(Olmoe().U32("general.file_type", 1)), first);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace switchyard
