#include "services/quantization/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "services/base/text.h"

namespace switchyard {
namespace {

using nlohmann::json;
using testing::HasSubstr;

json CompressedTensors(const char* format, int bits) {
  return {{"quantization_config",
           {{"quant_method", "compressed-tensors"},
            {"format", format},
            {"ignore", {"lm_head"}},
            {"config_groups",
             {{"group_0",
               {{"targets", {"Linear"}},
                {"weights",
                 {{"num_bits", bits}, {"type", "int"}, {"symmetric", true}, {"strategy", "group"}}},
                {"input_activations", nullptr}}}}}}}};
}

json& Weights(json& config) {
  return config["quantization_config"]["config_groups"]["group_0"]["weights"];
}

std::string Error(const json& config) {
  const auto read = ReadQuantization(config);
  EXPECT_FALSE(read.ok()) << config;
  return std::string(ToStd(read.status().message()));
}

TEST(ReadQuantization, NoneWhereThereIsNoConfig) {
  EXPECT_EQ(ReadQuantization(json::object())->method, Quantization::kNone);
  EXPECT_EQ(ReadQuantization({{"quantization_config", nullptr}})->method, Quantization::kNone);
}

TEST(ReadQuantization, CompressedTensors) {
  EXPECT_EQ(ReadQuantization(CompressedTensors("int-quantized", 8))->method, Quantization::kInt8);
  json int4 = CompressedTensors("pack-quantized", 4);
  EXPECT_EQ(ReadQuantization(int4)->method, Quantization::kInt4);
  EXPECT_FALSE(ReadQuantization(int4)->zero_points);
  Weights(int4)["symmetric"] = false;
  EXPECT_TRUE(ReadQuantization(int4)->zero_points);
}

json Of(json quantization) { return {{"quantization_config", std::move(quantization)}}; }

TEST(ReadQuantization, Fp8) {
  const auto config = *ReadQuantization(
      Of({{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {128, 128}}}));
  EXPECT_EQ(config.method, Quantization::kFp8);
  EXPECT_TRUE(config.inverse_name);
  EXPECT_EQ(config.block_rows, 128);
  EXPECT_EQ(config.block_columns, 128);
  for (const json& blocks : {json(nullptr), json(128), json({128}), json({0, 128}), json({128, 64}),
                             json({-1, 128}), json({128, "128"}), json({128, 1ull << 40})}) {
    EXPECT_THAT(Error(Of({{"quant_method", "fp8"}, {"weight_block_size", blocks}})),
                HasSubstr("weight_block_size is "));
  }
  EXPECT_THAT(Error(Of({{"quant_method", "fp8"}, {"fmt", "e5m2"}})), HasSubstr("fmt is \"e5m2\""));

  json compressed = CompressedTensors("float-quantized", 8);
  Weights(compressed) = {{"num_bits", 8}, {"type", "float"}, {"strategy", "channel"}};
  EXPECT_EQ(ReadQuantization(compressed)->method, Quantization::kFp8);
  EXPECT_EQ(ReadQuantization(compressed)->block_rows, 0);
  EXPECT_FALSE(ReadQuantization(compressed)->inverse_name);
  Weights(compressed)["strategy"] = "block";
  EXPECT_THAT(Error(compressed), HasSubstr("block_structure is null"));
  Weights(compressed)["block_structure"] = {128, 128};
  EXPECT_EQ(ReadQuantization(compressed)->block_columns, 128);
}

TEST(ReadQuantization, Mxfp4GptqAndAwq) {
  EXPECT_EQ(ReadQuantization(Of({{"quant_method", "mxfp4"}}))->method, Quantization::kMxfp4);
  const json gptq = {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 128}};
  EXPECT_EQ(ReadQuantization(Of(gptq))->method, Quantization::kGptq);
  EXPECT_EQ(ReadQuantization(Of(gptq))->zero_offset, 1);
  const auto with = [](json config, const char* field, json value) {
    config[field] = std::move(value);
    return Of(config);
  };
  EXPECT_EQ(ReadQuantization(with(gptq, "checkpoint_format", "gptq_v2"))->zero_offset, 0);
  EXPECT_THAT(Error(with(gptq, "checkpoint_format", "marlin")),
              HasSubstr("checkpoint_format is \"marlin\""));
  EXPECT_THAT(Error(with(gptq, "desc_act", true)), HasSubstr("desc_act is true; supported: false"));
  EXPECT_THAT(Error(with(gptq, "bits", 8)), HasSubstr("bits is 8; supported: 4"));
  EXPECT_THAT(Error(with(gptq, "dynamic", {{"x", 1}})), HasSubstr("dynamic is "));
  const json awq = {{"quant_method", "awq"}, {"bits", 4}, {"version", "gemm"}};
  EXPECT_EQ(ReadQuantization(Of(awq))->method, Quantization::kAwq);
  EXPECT_THAT(Error(with(awq, "version", "gemv")), HasSubstr("version is \"gemv\""));
  EXPECT_THAT(Error(with(awq, "bits", 3)), HasSubstr("bits is 3; supported: 4"));
  EXPECT_THAT(Error(with(awq, "zero_point", false)), HasSubstr("zero_point is false"));
}

TEST(ReadQuantization, NamesTheFieldAndWhatIsSupported) {
  EXPECT_THAT(Error({{"quantization_config", 3}}), HasSubstr("quantization_config is no object"));
  EXPECT_THAT(Error({{"quantization_config", {{"quant_method", "bitsandbytes"}}}}),
              HasSubstr("quantization_config.quant_method is \"bitsandbytes\"; supported: "));
  EXPECT_THAT(Error(CompressedTensors("marlin-24", 4)),
              HasSubstr("quantization_config.format is \"marlin-24\"; supported: "));
  const std::string weights = "quantization_config.config_groups.group_0.weights.";
  EXPECT_THAT(Error(CompressedTensors("pack-quantized", 8)),
              HasSubstr(weights + "num_bits is 8; supported: 4"));
  json changed = CompressedTensors("int-quantized", 8);
  Weights(changed)["symmetric"] = false;
  EXPECT_THAT(Error(changed), HasSubstr(weights + "symmetric is false; supported: true"));
  changed = CompressedTensors("pack-quantized", 4);
  Weights(changed)["actorder"] = "group";
  EXPECT_THAT(Error(changed), HasSubstr(weights + "actorder is \"group\""));
  changed = CompressedTensors("pack-quantized", 4);
  Weights(changed)["type"] = "float";
  EXPECT_THAT(Error(changed), HasSubstr(weights + "type is \"float\""));
  changed = CompressedTensors("pack-quantized", 4);
  changed["quantization_config"]["sparsity_config"] = {{"format", "sparse-24-bitmask"}};
  EXPECT_THAT(Error(changed), HasSubstr("sparsity_config.format is \"sparse-24-bitmask\""));
  for (const json& groups : {json(nullptr), json::object(), json("x"), json::array({1})}) {
    changed["quantization_config"].erase("sparsity_config");
    changed["quantization_config"]["config_groups"] = groups;
    EXPECT_THAT(Error(changed), HasSubstr("config_groups is "));
  }
}

}  // namespace
}  // namespace switchyard
