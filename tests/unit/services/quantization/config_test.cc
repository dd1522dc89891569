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
