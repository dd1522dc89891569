#include "services/model/spec_from_hf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "services/base/file.h"
#include "services/base/text.h"

namespace switchyard {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

std::string Root() { return std::getenv("SWITCHYARD_SOURCE_DIR"); }

json Config(const std::string& model) {
  return json::parse(*ReadFile(Root() + "/tests/golden/models/" + model + "/config.json", 1 << 20));
}

ModelSpec Good(const json& config, std::string_view generation = "") {
  auto spec = SpecFromHf(config.dump(), generation);
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.ok() ? *spec : ModelSpec{};
}

std::string Error(const json& config, std::string_view generation = "") {
  auto spec = SpecFromHf(config.dump(), generation);
  EXPECT_FALSE(spec.ok());
  return spec.ok() ? "" : std::string(ToStd(spec.status().message()));
}

// A copy of `config` with one field set.
json With(json config, const char* field, json value) {
  config[field] = std::move(value);
  return config;
}

TEST(SpecFromHf, ReadsDeepseekV3) {
  const auto spec = LoadSpec(Root() + "/models/tiny-r1");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->family, Family::kDeepseekV3);
  EXPECT_EQ(spec->hidden, 192);
  EXPECT_EQ(spec->num_layers(), 5);
  EXPECT_FALSE(spec->layers[0].moe);
  EXPECT_TRUE(spec->layers[1].moe);
  EXPECT_EQ(spec->attention.kind, AttentionKind::kMla);
  EXPECT_EQ(spec->attention.q_lora_rank, 96);
  EXPECT_FLOAT_EQ(spec->attention.softmax_scale, 1 / std::sqrt(48.0f));
  EXPECT_EQ(spec->attention.rope.layout, RopeLayout::kInterleaved);
  EXPECT_EQ(spec->gate.score, GateScore::kSigmoid);
  EXPECT_EQ(spec->gate.group_score, GroupScore::kTop2Sum);
  EXPECT_EQ(spec->gate.groups, 16);
  EXPECT_EQ(spec->gate.topk_groups, 4);
  EXPECT_TRUE(spec->gate.normalise);
  EXPECT_FLOAT_EQ(spec->gate.scale, 2.5f);
  EXPECT_EQ(spec->experts.shared_intermediate, 32);
  EXPECT_EQ(spec->bos_id, 0);
  EXPECT_THAT(spec->eos_ids, ElementsAre(1));
}

TEST(SpecFromHf, YarnOfDeepseekScalesTheSoftmaxAndNotTheRows) {
  const ModelSpec spec = Good(Config("deepseek-v3-tiny"));
  const double mscale = 0.1 * std::log(16.0) + 1;
  EXPECT_EQ(spec.attention.rope.scaling, RopeScaling::kYarn);
  EXPECT_DOUBLE_EQ(spec.attention.rope.attention_factor, 1.0);
  EXPECT_FLOAT_EQ(spec.attention.softmax_scale,
                  static_cast<float>(mscale * mscale / std::sqrt(24.0)));
}

TEST(SpecFromHf, YarnWithoutMscaleScalesTheRows) {
  const ModelSpec spec = Good(Config("gpt-oss-tiny"));
  EXPECT_DOUBLE_EQ(spec.attention.rope.attention_factor, 0.1 * std::log(16.0) + 1);
  EXPECT_FALSE(spec.attention.rope.truncate);
  EXPECT_FLOAT_EQ(spec.attention.softmax_scale, 0.25f);
  EXPECT_EQ(spec.gate.score, GateScore::kSoftmaxAfterTopK);
  EXPECT_TRUE(spec.attention.sinks && spec.attention.qkv_bias && spec.attention.out_bias);
  EXPECT_TRUE(spec.experts.stacked && spec.experts.bias && spec.gate.bias);
  EXPECT_FLOAT_EQ(spec.experts.swiglu_limit, 1.5f);
  EXPECT_EQ(spec.layers[0].window, 32);
  EXPECT_EQ(spec.layers[1].window, 0);
}

TEST(SpecFromHf, YarnFactorDefaultsToTheRatioOfLengths) {
  json config = Config("deepseek-v3-tiny");
  config["rope_scaling"].erase("factor");
  EXPECT_DOUBLE_EQ(Good(config).attention.rope.factor, 2048.0 / 128);
}

TEST(SpecFromHf, ReadsDeepseekV2) {
  json config = Config("deepseek-v2-tiny");
  ModelSpec spec = Good(config);
  EXPECT_EQ(spec.attention.q_lora_rank, 0);
  EXPECT_EQ(spec.gate.group_score, GroupScore::kMax);
  EXPECT_EQ(spec.experts.shared_intermediate, 32);
  EXPECT_FALSE(spec.gate.normalise);
  config["topk_method"] = "greedy";
  spec = Good(config);
  EXPECT_EQ(spec.gate.group_score, GroupScore::kNone);
  EXPECT_EQ(spec.gate.groups, 1);
  // The reference implementation does not look at norm_topk_prob.
  EXPECT_FALSE(Good(With(config, "norm_topk_prob", true)).gate.normalise);
}

TEST(SpecFromHf, ReadsQwen3Moe) {
  json config = Config("qwen3-moe-tiny");
  ModelSpec spec = Good(config);
  EXPECT_EQ(spec.attention.head_dim, 24);
  EXPECT_EQ(spec.attention.qk_norm, QkNorm::kPerHead);
  EXPECT_TRUE(spec.gate.normalise);
  EXPECT_EQ(spec.experts_per_group(), 1);
  EXPECT_EQ(spec.num_reduction_groups(), 16);
  config["decoder_sparse_step"] = 2;
  spec = Good(config);
  EXPECT_FALSE(spec.layers[0].moe);
  EXPECT_TRUE(spec.layers[1].moe);
  config["decoder_sparse_step"] = 1;
  config["mlp_only_layers"] = {2};
  spec = Good(config);
  EXPECT_TRUE(spec.layers[0].moe);
  EXPECT_FALSE(spec.layers[2].moe);
}

TEST(SpecFromHf, QwenSlidesOnlyWhenTold) {
  json config = With(Config("qwen3-moe-tiny"), "sliding_window", 32);
  EXPECT_EQ(Good(config).layers[0].window, 0);
  config["use_sliding_window"] = true;
  EXPECT_EQ(Good(config).layers[0].window, 32);
  EXPECT_EQ(Good(config).layers[2].window, 32);
}

TEST(SpecFromHf, ReadsMixtralAndOlmoe) {
  EXPECT_EQ(Good(Config("mixtral-swa-tiny")).layers[1].window, 32);
  EXPECT_TRUE(Good(Config("mixtral-tiny")).gate.normalise);
  const ModelSpec olmoe = Good(With(Config("olmoe-tiny"), "clip_qkv", 0.5));
  EXPECT_FLOAT_EQ(olmoe.attention.clip_qkv, 0.5f);
  EXPECT_EQ(olmoe.attention.qk_norm, QkNorm::kWholeProjection);
  EXPECT_FALSE(olmoe.gate.normalise);
  EXPECT_EQ(olmoe.weight_dtype, DType::kBF16);
}

TEST(SpecFromHf, BothSpellingsOfRopeAgree) {
  json old_spelling = Config("deepseek-v3-tiny");
  json new_spelling = old_spelling;
  json rope = new_spelling["rope_scaling"];
  rope["rope_type"] = rope["type"];
  rope.erase("type");
  rope["rope_theta"] = new_spelling["rope_theta"];
  new_spelling.erase("rope_scaling");
  new_spelling.erase("rope_theta");
  new_spelling["rope_parameters"] = rope;
  old_spelling["rope_theta"] = new_spelling["rope_parameters"]["rope_theta"] = 12345.0;
  const RopeSpec a = Good(old_spelling).attention.rope;
  const RopeSpec b = Good(new_spelling).attention.rope;
  EXPECT_EQ(a.theta, 12345.0);
  EXPECT_EQ(b.theta, 12345.0);
  EXPECT_EQ(a.scaling, b.scaling);
  EXPECT_EQ(a.factor, b.factor);
  EXPECT_EQ(a.original_max_position, b.original_max_position);
}

TEST(SpecFromHf, ReadsLinearAndLlama3) {
  json config = Config("qwen3-moe-tiny");
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  EXPECT_EQ(Good(config).attention.rope.scaling, RopeScaling::kLinear);
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 8.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 128}};
  EXPECT_EQ(Good(config).attention.rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(Good(config).attention.rope.original_max_position, 128);
  config["rope_scaling"]["high_freq_factor"] = 1.0;
  EXPECT_THAT(Error(config), HasSubstr("high_freq_factor is 1"));
}

TEST(SpecFromHf, GenerationConfigWins) {
  const json config = Config("mixtral-tiny");
  const ModelSpec spec = Good(config, R"({"eos_token_id": [7, 9], "bos_token_id": 3})");
  EXPECT_THAT(spec.eos_ids, ElementsAre(7, 9));
  EXPECT_EQ(spec.bos_id, 3);
  EXPECT_THAT(Good(config, R"({"bos_token_id": null})").eos_ids, ElementsAre(1));
  EXPECT_THAT(Error(config, R"({"eos_token_id": 2560})"),
              HasSubstr("generation_config.json: eos_token_id is 2560"));
  EXPECT_THAT(Error(config, R"({"eos_token_id": "x"})"), HasSubstr("eos_token_id is \"x\""));
}

struct Refusal {
  const char* model;
  const char* field;
  json value;
  const char* says;
};

class RefusalTest : public testing::TestWithParam<Refusal> {};

TEST_P(RefusalTest, NamesFileFieldAndValue) {
  const Refusal& r = GetParam();
  const std::string message = Error(With(Config(r.model), r.field, r.value));
  EXPECT_THAT(message, HasSubstr(r.says));
  EXPECT_THAT(message, HasSubstr("config.json: "));
}

INSTANTIATE_TEST_SUITE_P(
    Unsupported, RefusalTest,
    testing::Values(
        Refusal{"mixtral-tiny",
                "architectures",
                {"LlamaForCausalLM"},
                "architectures is \"LlamaForCausalLM\"; supported: DeepseekV2ForCausalLM"},
        Refusal{"mixtral-tiny",
                "rope_scaling",
                {{"type", "dynamic"}, {"factor", 2}},
                "rope_scaling: type is \"dynamic\"; supported: default, linear, yarn, llama3"},
        Refusal{"mixtral-tiny",
                "rope_scaling",
                {{"rope_type", "longrope"}},
                "rope_type is \"longrope\""},
        Refusal{"mixtral-tiny", "torch_dtype", "float8_e4m3fn", "torch_dtype is \"float8_e4m3fn\""},
        Refusal{"mixtral-tiny", "hidden_act", "gelu",
                "hidden_act is \"gelu\"; supported: \"silu\""},
        Refusal{"mixtral-tiny", "partial_rotary_factor", 0.5, "partial_rotary_factor is 0.5"},
        Refusal{"deepseek-v3-tiny",
                "quantization_config",
                {{"quant_method", "fp8"}},
                "quantization_config.weight_block_size is null"},
        Refusal{"qwen3-moe-tiny",
                "quantization_config",
                {{"quant_method", "hqq"}},
                "quantization_config.quant_method is \"hqq\"; supported: "},
        Refusal{"deepseek-v3-tiny", "scoring_func", "softmax", "scoring_func is \"softmax\""},
        Refusal{"deepseek-v3-tiny", "topk_method", "greedy", "topk_method is \"greedy\""},
        Refusal{"deepseek-v2-tiny", "topk_method", "noaux_tc", "topk_method is \"noaux_tc\""},
        Refusal{"deepseek-v3-tiny", "attention_bias", true, "attention_bias is true"},
        Refusal{"deepseek-v3-tiny", "num_key_value_heads", 2, "num_key_value_heads is 2"},
        Refusal{"gpt-oss-tiny", "layer_types", {"a", "b", "c", "d"}, "layer_types[0] is \"a\""}));

INSTANTIATE_TEST_SUITE_P(
    Impossible, RefusalTest,
    testing::Values(
        Refusal{"mixtral-tiny", "hidden_size", -3, "hidden_size is -3, expected an integer in [1,"},
        Refusal{"mixtral-tiny", "hidden_size", nullptr, "hidden_size is missing"},
        Refusal{"mixtral-tiny", "hidden_size", 64.5, "hidden_size is 64.5"},
        Refusal{"mixtral-tiny", "hidden_size", 18446744073709551615ull, "hidden_size is 1844"},
        Refusal{"mixtral-tiny", "num_hidden_layers", 0, "num_hidden_layers is 0"},
        Refusal{"mixtral-tiny", "num_key_value_heads", 3, "num_key_value_heads 3 does not divide"},
        Refusal{"mixtral-tiny", "num_attention_heads", 5, "does not divide"},
        Refusal{"mixtral-tiny", "num_experts_per_tok", 9, "num_experts_per_tok is 9"},
        Refusal{"mixtral-tiny", "sliding_window", 0, "sliding_window is 0"},
        Refusal{"mixtral-tiny", "rms_norm_eps", "x", "rms_norm_eps is \"x\""},
        Refusal{"mixtral-tiny", "rope_theta", 0, "rope_theta is 0"},
        Refusal{"mixtral-tiny", "rope_scaling", "yarn", "rope_scaling is \"yarn\""},
        Refusal{"mixtral-tiny", "eos_token_id", -1, "eos_token_id is -1"},
        Refusal{"mixtral-tiny", "tie_word_embeddings", 1, "tie_word_embeddings is 1"},
        Refusal{"qwen3-moe-tiny", "head_dim", 23, "rotates 23 dimensions"},
        Refusal{"qwen3-moe-tiny", "mlp_only_layers", {3}, "mlp_only_layers is 3"},
        Refusal{"qwen3-moe-tiny", "mlp_only_layers", {0, 1, 2}, "none of the 3 layers has experts"},
        Refusal{"gpt-oss-tiny", "layer_types", {"full_attention"}, "a list of 4 layer types"},
        Refusal{"deepseek-v3-tiny", "n_group", 5, "n_group 5 does not divide the 32 experts"},
        Refusal{"deepseek-v3-tiny", "n_group", 32, "the two best of a group"},
        Refusal{"deepseek-v3-tiny", "topk_group", 9, "topk_group is 9"},
        Refusal{"deepseek-v2-tiny", "num_experts_per_tok", 9, "leaves only 8 to choose from"},
        Refusal{"deepseek-v3-tiny", "n_shared_experts", 1025, "n_shared_experts is 1025"},
        Refusal{"deepseek-v3-tiny", "qk_rope_head_dim", 7, "rotates 7 dimensions"}));

TEST(SpecFromHf, BrokenJsonIsAnError) {
  for (const char* text : {"", "{", "[]", "3", "{\"a\": }", "\xff\xfe"}) {
    EXPECT_FALSE(SpecFromHf(text, "").ok()) << text;
  }
  const std::string deep = "{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}";
  EXPECT_THAT(std::string(ToStd(SpecFromHf(deep, "").status().message())),
              HasSubstr("nests too deep"));
}

TEST(LoadSpec, NamesTheMissingFile) {
  const auto spec = LoadSpec("/nonexistent");
  EXPECT_THAT(std::string(ToStd(spec.status().message())), HasSubstr("/nonexistent/config.json"));
}

}  // namespace
}  // namespace switchyard
