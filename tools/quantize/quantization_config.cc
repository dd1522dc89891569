#include "tools/quantize/quantization_config.h"

#include <nlohmann/json.hpp>

#include "services/base/file.h"
#include "services/base/status.h"

namespace switchyard::quantize {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kMaxConfigBytes = uint64_t{64} << 20;

absl::StatusOr<Json> ReadConfig(const std::string& directory) {
  const std::string path = directory + "/config.json";
  SY_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  Json config = Json::parse(text, nullptr, false);
  if (!config.is_object()) return InvalidArgument("{}: is no JSON object", path);
  return config;
}

Json Integers(int bits, const char* strategy, bool dynamic) {
  return {{"num_bits", bits},    {"type", "int"},
          {"symmetric", true},   {"strategy", strategy},
          {"dynamic", dynamic},  {"group_size", nullptr},
          {"actorder", nullptr}, {"block_structure", nullptr},
          {"observer", nullptr}, {"observer_kwargs", Json::object()}};
}

Json CompressedTensors(const Format& format) {
  const bool int8 = format.scheme == Scheme::kInt8;
  Json weights = Integers(int8 ? 8 : 4, int8 ? "channel" : "group", false);
  weights["observer"] = "minmax";
  if (!int8) weights["group_size"] = format.group;
  Json ignore = {"lm_head", R"(re:.*mlp\.gate$)", R"(re:.*block_sparse_moe\.gate$)"};
  if (!int8) ignore.push_back(R"(re:.*self_attn\..*)");
  const char* layout = int8 ? "int-quantized" : "pack-quantized";
  return {{"quant_method", "compressed-tensors"},
          {"format", layout},
          {"quantization_status", "compressed"},
          {"global_compression_ratio", nullptr},
          {"kv_cache_scheme", nullptr},
          {"config_groups",
           {{"group_0",
             {{"targets", {"Linear"}},
              {"weights", weights},
              {"input_activations", int8 ? Integers(8, "token", true) : Json()},
              {"output_activations", nullptr}}}}},
          {"ignore", ignore}};
}

Json DeepSeekFp8() {
  return {{"quant_method", "fp8"},
          {"fmt", "e4m3"},
          {"activation_scheme", "dynamic"},
          {"weight_block_size", {128, 128}}};
}

}  // namespace

absl::Status CheckNotQuantised(const std::string& directory) {
  SY_ASSIGN_OR_RETURN(const Json config, ReadConfig(directory));
  const auto found = config.find("quantization_config");
  if (found == config.end() || found->is_null()) return absl::OkStatus();
  return InvalidArgument("{}: its weights are quantised already; take the original", directory);
}

absl::Status WriteConfig(const std::string& from, const std::string& to, const Format& format) {
  SY_ASSIGN_OR_RETURN(Json config, ReadConfig(from));
  config["quantization_config"] =
      format.scheme == Scheme::kFp8 ? DeepSeekFp8() : CompressedTensors(format);
  return WriteFile(to + "/config.json", config.dump(2) + "\n");
}

}  // namespace switchyard::quantize
