// Golden models rewritten in every scheme: how large they become, how well they still predict, and
// what is refused.
#include "tools/quantize/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "nlohmann/json.hpp"
#include "services/base/text.h"
#include "services/checkpoint/tensor_source.h"
#include "tests/support/golden.h"

namespace switchyard::quantize {
namespace {

using testing::HasSubstr;

std::string Out(const std::string& name) {
  const std::string directory = testing::TempDir() + "/quantized-" + name;
  std::filesystem::remove_all(directory);
  return directory;
}

QuantizeOptions Of(Scheme scheme, const std::string& model, const std::string& out) {
  return {.in = test::SourcePath(model), .out = Out(out), .scheme = scheme, .threads = 2};
}

std::string TextFile() { return test::SourcePath("tests/golden/texts/tiny-r1.txt"); }

struct Bar {
  const char* name;
  Scheme scheme;
  double most_perplexity;  // change, of 1
  double most_experts;     // bytes after ÷ before
};

class QuantizeTinyR1Test : public testing::TestWithParam<Bar> {};

TEST_P(QuantizeTinyR1Test, KeepsWhatItPredicts) {
  const Bar& bar = GetParam();
  QuantizeOptions options = Of(bar.scheme, "models/tiny-r1", bar.name);
  options.text = TextFile();
  const auto report = Quantize(options);
  ASSERT_TRUE(report.ok()) << report.status();
  RecordProperty("before", std::to_string(report->perplexity_before));
  RecordProperty("after", std::to_string(report->perplexity_after));
  EXPECT_GT(report->predicted_tokens, 4000);
  // High: half of the text are questions, which the model was not trained to ask.
  EXPECT_GT(report->perplexity_before, 10);
  EXPECT_LT(report->perplexity_before, 50);
  EXPECT_NEAR(report->perplexity_after / report->perplexity_before, 1, bar.most_perplexity);
  EXPECT_LE(static_cast<double>(report->expert_bytes_after),
            bar.most_experts * static_cast<double>(report->expert_bytes_before));
  ASSERT_EQ(report->layers.size(), 5u);
  EXPECT_GT(report->layers[0].mlp, 0);
  EXPECT_EQ(report->layers[0].experts, 0);  // a dense layer
  for (size_t layer = 1; layer < 5; ++layer) EXPECT_GT(report->layers[layer].experts, 0);
}

INSTANTIATE_TEST_SUITE_P(Schemes, QuantizeTinyR1Test,
                         testing::Values(Bar{"int8", Scheme::kInt8, 0.01, 0.54},
                                         Bar{"int4", Scheme::kInt4, 0.06, 0.3},
                                         Bar{"int4_awq", Scheme::kInt4Awq, 0.03, 0.3}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(QuantizeTest, OtherFamiliesTooInSeveralFiles) {
  for (const char* model : {"mixtral-tiny", "qwen3-moe-tiny", "olmoe-tiny"}) {
    for (const Scheme scheme : {Scheme::kInt8, Scheme::kFp8}) {
      QuantizeOptions options = Of(scheme, std::string("tests/golden/models/") + model, "family");
      options.file_bytes = 100'000;
      const auto report = Quantize(options);
      ASSERT_TRUE(report.ok()) << model << ": " << report.status();
      EXPECT_GT(report->layers.back().experts, 0);
      EXPECT_GT(report->layers.back().attention, 0);
      const auto source = checkpoint::OpenSafetensors(options.out);
      ASSERT_TRUE(source.ok()) << source.status();
      EXPECT_GT((*source)->files().size(), 2u);
    }
  }
}

TEST(QuantizeTest, ConfigAndTokenizerComeAlong) {
  QuantizeOptions options = Of(Scheme::kInt4, "models/tiny-r1", "files");
  const auto report = Quantize(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->group_size, 32);
  EXPECT_EQ(report->predicted_tokens, 0);
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    EXPECT_TRUE(std::filesystem::exists(options.out + "/" + file)) << file;
  }
  std::ifstream in(options.out + "/config.json");
  const nlohmann::json config = nlohmann::json::parse(in);
  EXPECT_EQ(config["hidden_size"], 192);
  const nlohmann::json& q = config["quantization_config"];
  EXPECT_EQ(q["quant_method"], "compressed-tensors");
  EXPECT_EQ(q["format"], "pack-quantized");
  EXPECT_EQ(q["config_groups"]["group_0"]["weights"]["group_size"], 32);
  EXPECT_EQ(q["config_groups"]["group_0"]["weights"]["num_bits"], 4);
}

TEST(QuantizeTest, WhatCannotBeDoneIsSaid) {
  const auto error = [](const QuantizeOptions& options) {
    const absl::Status status = Quantize(options).status();
    return std::string(ToStd(status.message()));
  };
  QuantizeOptions options = Of(Scheme::kInt4Awq, "models/tiny-r1", "errors");
  EXPECT_THAT(error(options), HasSubstr("--text"));
  options.scheme = Scheme::kInt4;
  options.group_size = 128;
  EXPECT_THAT(error(options), HasSubstr("are not multiples of 128"));
  options.group_size = 48;
  EXPECT_THAT(error(options), HasSubstr("group size 48"));
  EXPECT_THAT(error(Of(Scheme::kInt8, "tests/golden/models/gpt-oss-tiny", "errors")),
              HasSubstr("stacked"));
  EXPECT_THAT(error(Of(Scheme::kInt8, "tests/golden/models/deepseek-v2-tiny", "errors")),
              HasSubstr("rows of 16 values are not multiples of 32"));
  EXPECT_THAT(error(Of(Scheme::kInt8, "README.md", "errors")), HasSubstr("not a directory"));
  options = Of(Scheme::kInt8, "models/tiny-r1", "twice");
  ASSERT_TRUE(Quantize(options).ok());
  EXPECT_THAT(error(options), HasSubstr("is there already"));
  options.in = options.out;
  options.out = Out("thrice");
  EXPECT_THAT(error(options), HasSubstr("quantised already"));
  EXPECT_EQ(SchemeFrom("int3").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace switchyard::quantize
