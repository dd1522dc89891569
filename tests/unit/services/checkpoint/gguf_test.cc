#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/checkpoint/gguf_names.h"
#include "services/checkpoint/tensor_source.h"
#include "services/checkpoint/weight_check.h"
#include "tests/support/gguf_writer.h"
#include "tests/unit/services/checkpoint/safetensors_files.h"

namespace switchyard::checkpoint {
namespace {

using test::GgufWriter;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kF32Number = 0, kQ5_0Number = 6, kQ8_0Number = 8, kBF16Number = 30;

class OpenGgufTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<TensorSource>> Open(const GgufWriter& writer) {
    WriteFile(dir_ / "m.gguf", writer.Bytes());
    return OpenCheckpoint(dir_ / "m.gguf");
  }
  std::string Problem(const GgufWriter& writer) {
    return std::string(Open(writer).status().message());
  }
  static GgufWriter Model(const char* architecture) {
    return GgufWriter().String("general.architecture", architecture);
  }

  const TempDirectory dir_;
};

TEST_F(OpenGgufTest, ServesTensorsUnderTheirHuggingFaceNames) {
  const auto source =
      Open(Model("deepseek2")
               .Tensor("token_embd.weight", {4, 2}, kF32Number, std::string(32, 1))
               .Tensor("blk.3.exp_probs_b.bias", {8}, kF32Number, std::string(32, 2))
               .Tensor("of.its.own", {8}, kF32Number, std::string(32, 3)));
  ASSERT_TRUE(source.ok()) << source.status();
  const TensorInfo* embedding = (*source)->Find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_THAT(embedding->shape, ElementsAre(2, 4));
  EXPECT_NE((*source)->Find("model.layers.3.mlp.gate.e_score_correction_bias"), nullptr);
  EXPECT_NE((*source)->Find("of.its.own"), nullptr);
}

TEST_F(OpenGgufTest, ServesAnExpertOfAStackAndMapsNoOther) {
  // Each expert fills whole pages.
  std::string bytes;
  for (char expert = 0; expert < 4; ++expert) bytes += std::string(64 << 10, expert);
  const auto source =
      Open(Model("qwen3moe").Tensor("blk.0.ffn_up_exps.weight", {128, 128, 4}, kF32Number, bytes));
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->tensors().size(), 4u);
  const auto name = [](int expert) {
    return "model.layers.0.mlp.experts." + std::to_string(expert) + ".up_proj.weight";
  };
  ASSERT_TRUE((*source)->Map({{name(2)}}).ok());
  const auto held = (*source)->Get({name(2)});
  ASSERT_TRUE(held.ok()) << held.status();
  EXPECT_THAT(held->shape, ElementsAre(128, 128));
  EXPECT_EQ(held->data[0], std::byte{2});
  EXPECT_EQ(held->data[(64 << 10) - 1], std::byte{2});
  EXPECT_FALSE((*source)->Get({name(0)}).ok());
}

TEST_F(OpenGgufTest, BlocksAndTheirScales) {
  std::string block(34, '\x01');
  const auto source = Open(Model("olmoe")
                               .Tensor("blk.0.attn_q.weight", {32, 2}, kQ8_0Number, block + block)
                               .Tensor("blk.0.attn_k.weight", {32, 2}, kQ8_0Number,
                                       block + std::string("\x00\x7e", 2) + std::string(32, 'x')));
  ASSERT_TRUE(source.ok()) << source.status();
  const std::string q = "model.layers.0.self_attn.q_proj.weight";
  const std::string k = "model.layers.0.self_attn.k_proj.weight";
  EXPECT_EQ((*source)->Find(q)->dtype, DType::kQ8_0);
  EXPECT_EQ((*source)->Find(q)->bytes, 68u);
  ASSERT_TRUE((*source)->Map({{q}, {k}}).ok());
  EXPECT_TRUE(CheckWeights(**source, {{q}}, nullptr).ok());
  EXPECT_THAT(std::string(CheckWeights(**source, {{q}, {k}}, nullptr).message()), HasSubstr(k));
}

TEST_F(OpenGgufTest, RefusesByNameWhatItCannotCompute) {
  const auto source =
      Open(Model("olmoe")
               .Tensor("blk.0.attn_q.weight", {32, 2}, kQ5_0Number, std::string(44, 'x'))
               .Tensor("blk.0.attn_norm.weight", {32}, kQ8_0Number, std::string(34, 'x'))
               .Tensor("blk.0.attn_v.weight", {32}, 77, std::string(34, 'x')));
  ASSERT_TRUE(source.ok()) << source.status();
  const auto problem = [&](const std::string& name) {
    return std::string((*source)->Map({{name}}).message());
  };
  EXPECT_THAT(problem("model.layers.0.self_attn.q_proj.weight"),
              HasSubstr("dtype Q5_0; supported: F32, F16, BF16, Q8_0"));
  EXPECT_THAT(problem("model.layers.0.input_layernorm.weight"), HasSubstr("Q8_0 as a vector"));
  EXPECT_THAT(problem("model.layers.0.self_attn.v_proj.weight"), HasSubstr("77 of ggml"));
  const std::string x(64, 'x');
  EXPECT_THAT(Problem(Model("llama").Tensor("rope_freqs.weight", {8}, kF32Number, x)),
              HasSubstr("rope_freqs.weight\" scales rope by a table"));
  EXPECT_THAT(Problem(Model("llama").Tensor("blk.1.attn_qkv.weight", {8}, kF32Number, x)),
              HasSubstr("is fused"));
}

TEST_F(OpenGgufTest, NamesTensorsThatDoNotFit) {
  EXPECT_THAT(Problem(Model("olmoe").Tensor("t", {16, 2}, kQ8_0Number, std::string(34, 'x'))),
              HasSubstr("rows of 16 elements"));
  EXPECT_THAT(Problem(Model("olmoe").Tensor("t", {1024}, kF32Number, "x")),
              HasSubstr("the file is truncated"));
  EXPECT_THAT(Problem(Model("olmoe")
                          .Tensor("t", {16}, kF32Number, std::string(64, 'x'))
                          .TensorAt("u", {16}, kBF16Number, 32)),
              HasSubstr("overlaps"));
  EXPECT_THAT(Problem(Model("olmoe").Tensor("blk.0.ffn_up_exps.weight", {8}, kF32Number, "x")),
              HasSubstr("none of experts"));
  const std::string x(32, 'x');
  EXPECT_THAT(Problem(Model("olmoe")
                          .Tensor("output.weight", {8}, kF32Number, x)
                          .Tensor("lm_head.weight", {8}, kF32Number, x)),
              HasSubstr("two tensors are \"lm_head.weight\""));
}

TEST(HuggingFaceNames, DifferByArchitecture) {
  const auto name = [](const char* architecture, const char* tensor) {
    const HuggingFaceName found = HuggingFaceNameOf(architecture, tensor);
    return found.stacked ? found.name + "7" + found.of_expert : found.name;
  };
  EXPECT_EQ(name("llama", "blk.2.ffn_down_exps.weight"),
            "model.layers.2.block_sparse_moe.experts.7.w2.weight");
  EXPECT_EQ(name("llama", "blk.2.ffn_gate_inp.weight"),
            "model.layers.2.block_sparse_moe.gate.weight");
  EXPECT_EQ(name("gpt-oss", "blk.10.ffn_gate_inp.bias"), "model.layers.10.mlp.router.bias");
  EXPECT_EQ(name("gpt-oss", "blk.0.post_attention_norm.weight"),
            "model.layers.0.post_attention_layernorm.weight");
  EXPECT_EQ(name("gpt-oss", "blk.0.attn_sinks.weight"), "model.layers.0.self_attn.sinks");
  EXPECT_EQ(name("gpt-oss", "blk.0.ffn_gate_exps.bias"),
            "model.layers.0.mlp.experts.7.gate_proj.bias");
  EXPECT_EQ(name("olmoe", "blk.x.attn_q.weight"), "blk.x.attn_q.weight");
}

}  // namespace
}  // namespace switchyard::checkpoint
