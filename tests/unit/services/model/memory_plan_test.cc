#include "services/model/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>
#include <vector>

#include "services/base/status.h"
#include "services/model/spec_from_hf.h"

namespace switchyard {
namespace {

std::string Root() { return std::getenv("SWITCHYARD_SOURCE_DIR"); }

ModelSpec Golden(const std::string& name) {
  auto spec = LoadSpec(Root() + "/tests/golden/models/" + name);
  EXPECT_TRUE(spec.ok()) << spec.status();
  return *spec;
}

std::vector<int> AllExperts(const ModelSpec& spec) {
  std::vector<int> all(static_cast<size_t>(spec.experts.count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// hidden 64, 3 layers, 4 heads of 16 with 2 KV heads, 8 experts of width 64, top 2, vocab 2560.
TEST(CountParameters, OfMixtralByHand) {
  const uint64_t attention = 64 * 64 + 2 * 32 * 64 + 64 * 64;
  const uint64_t backbone = 2 * 2560 * 64 + 64 + 3 * (2 * 64 + attention + 8 * 64);
  const uint64_t expert = 3 * 64 * 64;
  const ParameterCount count = CountParameters(Golden("mixtral-tiny"));
  EXPECT_EQ(count.total, backbone + 3 * 8 * expert);
  EXPECT_EQ(count.active, backbone + 3 * 2 * expert);
}

struct Published {
  const char* name;
  uint64_t parameters;  // as published with the weights, multi-token prediction left out
  const char* config;   // the fields of its config.json that we read
};

// The shapes of the real models, which no test can carry the weights of.
TEST(CountParameters, OfPublishedModels) {
  const Published models[] = {
      {"DeepSeek-V3", 671026419200, R"({"architectures":["DeepseekV3ForCausalLM"],
        "vocab_size":129280,"hidden_size":7168,"intermediate_size":18432,"moe_intermediate_size":2048,
        "num_hidden_layers":61,"num_attention_heads":128,"num_key_value_heads":128,
        "n_shared_experts":1,"n_routed_experts":256,"num_experts_per_tok":8,"n_group":8,
        "topk_group":4,"topk_method":"noaux_tc","scoring_func":"sigmoid","norm_topk_prob":true,
        "routed_scaling_factor":2.5,"first_k_dense_replace":3,"moe_layer_freq":1,"ep_size":1,
        "q_lora_rank":1536,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,
        "v_head_dim":128,"hidden_act":"silu","max_position_embeddings":163840,"rms_norm_eps":1e-06,
        "rope_theta":10000,"rope_scaling":{"beta_fast":32,"beta_slow":1,"factor":40,"mscale":1.0,
        "mscale_all_dim":1.0,"original_max_position_embeddings":4096,"type":"yarn"},
        "num_nextn_predict_layers":1,"attention_bias":false,"tie_word_embeddings":false,
        "bos_token_id":0,"eos_token_id":1,"torch_dtype":"bfloat16"})"},
      {"DeepSeek-V2-Lite", 15706484224, R"({"architectures":["DeepseekV2ForCausalLM"],
        "vocab_size":102400,"hidden_size":2048,"intermediate_size":10944,"moe_intermediate_size":1408,
        "num_hidden_layers":27,"num_attention_heads":16,"num_key_value_heads":16,
        "n_shared_experts":2,"n_routed_experts":64,"num_experts_per_tok":6,"n_group":1,
        "topk_group":1,"topk_method":"greedy","scoring_func":"softmax","norm_topk_prob":false,
        "routed_scaling_factor":1.0,"first_k_dense_replace":1,"moe_layer_freq":1,
        "q_lora_rank":null,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,
        "v_head_dim":128,"hidden_act":"silu","max_position_embeddings":163840,"rms_norm_eps":1e-06,
        "rope_theta":10000,"rope_scaling":{"beta_fast":32,"beta_slow":1,"factor":40,"mscale":0.707,
        "mscale_all_dim":0.707,"original_max_position_embeddings":4096,"type":"yarn"},
        "bos_token_id":100000,"eos_token_id":100001,"torch_dtype":"bfloat16"})"},
      {"Qwen3-30B-A3B", 30532122624, R"({"architectures":["Qwen3MoeForCausalLM"],
        "vocab_size":151936,"hidden_size":2048,"intermediate_size":6144,"moe_intermediate_size":768,
        "num_hidden_layers":48,"num_attention_heads":32,"num_key_value_heads":4,"head_dim":128,
        "num_experts":128,"num_experts_per_tok":8,"norm_topk_prob":true,"decoder_sparse_step":1,
        "mlp_only_layers":[],"hidden_act":"silu","max_position_embeddings":40960,
        "rms_norm_eps":1e-06,"rope_theta":1000000.0,"rope_scaling":null,"attention_bias":false,
        "use_sliding_window":false,"sliding_window":null,"max_window_layers":48,
        "bos_token_id":151643,"eos_token_id":151645,"torch_dtype":"bfloat16"})"},
      {"Mixtral-8x7B", 46702792704, R"({"architectures":["MixtralForCausalLM"],
        "vocab_size":32000,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,
        "num_attention_heads":32,"num_key_value_heads":8,"num_local_experts":8,
        "num_experts_per_tok":2,"hidden_act":"silu","max_position_embeddings":32768,
        "rms_norm_eps":1e-05,"rope_theta":1000000.0,"sliding_window":null,
        "bos_token_id":1,"eos_token_id":2,"torch_dtype":"bfloat16"})"},
      {"OLMoE-1B-7B", 6919161856, R"({"architectures":["OlmoeForCausalLM"],
        "vocab_size":50304,"hidden_size":2048,"intermediate_size":1024,"num_hidden_layers":16,
        "num_attention_heads":16,"num_key_value_heads":16,"num_experts":64,"num_experts_per_tok":8,
        "norm_topk_prob":false,"clip_qkv":null,"hidden_act":"silu","max_position_embeddings":4096,
        "rms_norm_eps":1e-05,"rope_theta":10000.0,"rope_scaling":null,"attention_bias":false,
        "eos_token_id":50279,"pad_token_id":1,"torch_dtype":"bfloat16"})"},
      {"gpt-oss-20b", 20914757184, R"({"architectures":["GptOssForCausalLM"],
        "vocab_size":201088,"hidden_size":2880,"intermediate_size":2880,"num_hidden_layers":24,
        "num_attention_heads":64,"num_key_value_heads":8,"head_dim":64,"num_local_experts":32,
        "num_experts_per_tok":4,"experts_per_token":4,"initial_context_length":4096,
        "hidden_act":"silu","max_position_embeddings":131072,"rms_norm_eps":1e-05,
        "rope_theta":150000,"rope_scaling":{"beta_fast":32.0,"beta_slow":1.0,"factor":32.0,
        "original_max_position_embeddings":4096,"rope_type":"yarn","truncate":false},
        "sliding_window":128,"swiglu_limit":7.0,"attention_bias":true,
        "eos_token_id":200002,"torch_dtype":"bfloat16"})"},
  };
  for (const Published& model : models) {
    const auto spec = SpecFromHf(model.config, "");
    ASSERT_TRUE(spec.ok()) << model.name << ": " << spec.status();
    EXPECT_EQ(CountParameters(*spec).total, model.parameters) << model.name;
  }
}

// hidden 64, 4 layers, 8 stacked experts of width 32 with biases.
TEST(ExpertBytes, OfStackedExpertsByHand) {
  const ModelSpec spec = Golden("gpt-oss-tiny");
  const uint64_t expert = 64 * 64 + 64 + 32 * 64 + 64;
  const int some[] = {0, 7};
  EXPECT_EQ(ExpertBytes(spec, some, nullptr).total(), 4 * 2 * expert * 2);
}

TEST(WeightBytes, AddUpToTheParameters) {
  for (const char* name : {"deepseek-v2-tiny", "deepseek-v3-noqlora-tiny", "qwen3-moe-gqa3-tiny",
                           "gpt-oss-six-tiny", "mixtral-six-tiny"}) {
    const ModelSpec spec = Golden(name);
    const uint64_t bytes =
        BackboneBytes(spec, nullptr).total() + ExpertBytes(spec, AllExperts(spec), nullptr).total();
    EXPECT_EQ(bytes, CountParameters(spec).total * 2) << name;
  }
}

TEST(WeightBytes, AreSplitByTheDtypeOfEachTensor) {
  const ModelSpec spec = Golden("deepseek-v3-tiny");
  const auto bytes = BackboneBytes(spec, [](std::string_view name) {
    return name.ends_with("correction_bias") ? DType::kF32 : DType::kBF16;
  });
  EXPECT_EQ(bytes.by_dtype.at(DType::kF32), 2u * 32 * 4);  // two MoE layers of 32 experts
  EXPECT_EQ(bytes.by_dtype.size(), 2u);
}

TEST(WeightBytes, OfBlocksAreThoseOfWholeBlocks) {
  const ModelSpec spec = Golden("mixtral-tiny");
  const auto all = [&](DType dtype) {
    return ExpertBytes(spec, AllExperts(spec), [=](std::string_view) { return dtype; }).total();
  };
  EXPECT_EQ(all(DType::kQ8_0), all(DType::kBF16) / 64 * 34);
  EXPECT_EQ(all(DType::kQ4_0), all(DType::kBF16) / 64 * 18);
}

ModelSpec AttentionOf(AttentionKind kind, int kv_heads, int head_dim) {
  ModelSpec spec;
  spec.attention.kind = kind;
  spec.attention.kv_heads = kv_heads;
  spec.attention.head_dim = head_dim;
  spec.attention.kv_lora_rank = 512;
  spec.attention.qk_rope_head_dim = 64;
  spec.layers.resize(4);
  return spec;
}

TEST(KvBytesPerToken, BytesTakeAtLeastFortyPercentLessThanBFloat16) {
  const ModelSpec specs[] = {AttentionOf(AttentionKind::kMla, 1, 0),
                             AttentionOf(AttentionKind::kGqa, 8, 128),
                             AttentionOf(AttentionKind::kGqa, 8, 64),
                             Golden("deepseek-v3-tiny"),
                             Golden("mixtral-tiny"),
                             Golden("gpt-oss-tiny")};
  for (const ModelSpec& spec : specs) {
    for (const DType dtype : {DType::kI8, DType::kF8E4M3}) {
      EXPECT_LE(KvBytesPerToken(spec, dtype), 0.6 * KvBytesPerToken(spec, DType::kBF16));
    }
  }
  // The scales are beside the bytes.
  EXPECT_EQ(KvBytesPerToken(specs[0], DType::kI8), 4u * (576 + 2 * 18));
}

TEST(KvBytesPerToken, MlaKeepsTheLatentAndGqaKeysAndValues) {
  EXPECT_EQ(KvBytesPerToken(Golden("deepseek-v3-tiny"), DType::kBF16), 3u * (32 + 8) * 2);
  EXPECT_EQ(KvBytesPerToken(Golden("mixtral-tiny"), DType::kF32), 3u * 2 * 2 * 16 * 4);
}

TEST(KvBytesPerToken, LayersWithAWindowKeepNothingBehindIt) {
  ModelSpec spec = AttentionOf(AttentionKind::kGqa, 8, 64);
  EXPECT_EQ(KvBytesPerKeptToken(spec, DType::kBF16), 4u * 2048);
  spec.layers.resize(24);
  for (size_t i = 0; i < spec.layers.size(); i += 2) spec.layers[i].window = 128;
  EXPECT_EQ(KvBytesPerToken(spec, DType::kBF16), 48u << 10);  // gpt-oss-20b
  EXPECT_EQ(KvBytesPerKeptToken(spec, DType::kBF16), 24u << 10);
  for (LayerSpec& layer : spec.layers) layer.window = 128;
  EXPECT_EQ(KvBytesPerToken(spec, DType::kBF16), 48u << 10);
  EXPECT_EQ(KvBytesPerKeptToken(spec, DType::kBF16), 0u);
}

TEST(CheckFits, NamesBothNumbersAndTheMend) {
  constexpr uint64_t kGib = uint64_t{1} << 30;
  EXPECT_TRUE(CheckFits(2 * kGib, kGib, 3 * kGib).ok());
  const absl::Status status = CheckFits(2 * kGib, kGib + 1, 3 * kGib);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(CheckFits(UINT64_MAX, UINT64_MAX, 3 * kGib).code(), status.code());
  EXPECT_THAT(std::string(ToStd(CheckFits(2 * kGib, 2 * kGib, 3 * kGib).message())),
              testing::HasSubstr("needs 4.00 GiB (2.00 GiB of weights and 2.00 GiB of KV cache), "
                                 "but 3.00 GiB are available; give less --kv-memory, or spread the "
                                 "experts over workers on other machines"));
  const auto ends = [](uint64_t weights, uint64_t kv, const char* mend) {
    EXPECT_THAT(std::string(CheckFits(weights, kv, 3 * kGib).message()),
                testing::EndsWith(fmt::format("GiB are available; {}", mend)));
  };
  ends(kGib, 9000 * kGib, "give less --kv-memory");
  ends(8 * kGib, 9 * kGib, "spread the experts over workers on other machines");
}

}  // namespace
}  // namespace switchyard
