#include "services/quantization/config.h"

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "services/base/status.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr std::string_view kField = "quantization_config";
constexpr size_t kMostShown = 80;

absl::Status Unsupported(std::string_view field, const json& found, std::string_view supported) {
  return Unimplemented(
      "config.json: {}.{} is {}; supported: {}", kField, field,
      found.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, kMostShown), supported);
}

// A member; null where the object has none.
const json& At(const json& object, const char* name) {
  static const json null;
  if (!object.is_object()) return null;
  const auto it = object.find(name);
  return it == object.end() ? null : *it;
}

bool Is(const json& value, std::string_view text) {
  return value.is_string() && value.get_ref<const std::string&>() == text;
}
// Of a number whatever its sign; false of anything else.
bool Is(const json& value, int64_t number) {
  return value.is_number_integer() && value.get<int64_t>() == number;
}
bool IsTrue(const json& value, bool fallback) {
  return value.is_boolean() ? value.get<bool>() : fallback;
}

// [rows, columns] that share a scale.
absl::Status ReadBlocks(const json& config, const char* field, const std::string& path,
                        QuantizationConfig& out) {
  const json& blocks = At(config, field);
  const auto size = [&](size_t i) -> int64_t {
    constexpr int64_t kMost = 1 << 20;
    if (!blocks.is_array() || blocks.size() != 2 || !blocks[i].is_number_integer()) return 0;
    const int64_t value = blocks[i].get<int64_t>();
    return value > 0 && value <= kMost ? value : 0;
  };
  if (size(0) == 0 || size(1) == 0 || size(1) % 128 != 0) {
    return Unsupported(path, blocks, "[rows, a multiple of 128]");
  }
  out.block_rows = size(0);
  out.block_columns = size(1);
  return absl::OkStatus();
}

// The weights of one of compressed-tensors' config_groups, in float8.
absl::Status ReadFloatGroup(const json& weights, const std::string& path, QuantizationConfig& out) {
  if (!Is(At(weights, "num_bits"), 8)) {
    return Unsupported(path + ".num_bits", At(weights, "num_bits"), "8");
  }
  if (!Is(At(weights, "type"), "float")) {
    return Unsupported(path + ".type", At(weights, "type"), "\"float\"");
  }
  if (!Is(At(weights, "strategy"), "block")) return absl::OkStatus();
  return ReadBlocks(weights, "block_structure", path + ".block_structure", out);
}

// The weights of one of compressed-tensors' config_groups.
absl::Status ReadGroup(const json& weights, const std::string& path, QuantizationConfig& out) {
  if (out.method == Quantization::kFp8) return ReadFloatGroup(weights, path, out);
  const int bits = out.method == Quantization::kInt8 ? 8 : 4;
  if (!Is(At(weights, "num_bits"), bits)) {
    return Unsupported(path + ".num_bits", At(weights, "num_bits"), std::to_string(bits));
  }
  if (!Is(At(weights, "type"), "int")) {
    return Unsupported(path + ".type", At(weights, "type"), "\"int\"");
  }
  const json& actorder = At(weights, "actorder");
  if (Is(actorder, "group")) {
    return Unsupported(path + ".actorder", actorder, "null, \"weight\", \"static\"");
  }
  if (IsTrue(At(weights, "symmetric"), true)) return absl::OkStatus();
  if (out.method == Quantization::kInt8) {
    return Unsupported(path + ".symmetric", At(weights, "symmetric"), "true (of int8)");
  }
  out.zero_points = true;
  return absl::OkStatus();
}

absl::StatusOr<QuantizationConfig> ReadCompressedTensors(const json& config) {
  QuantizationConfig out;
  const json& format = At(config, "format");
  if (Is(format, "int-quantized")) {
    out.method = Quantization::kInt8;
  } else if (Is(format, "pack-quantized")) {
    out.method = Quantization::kInt4;
  } else if (Is(format, "float-quantized")) {
    out.method = Quantization::kFp8;
  } else {
    return Unsupported("format", format,
                       "\"int-quantized\", \"pack-quantized\", \"float-quantized\"");
  }
  const json& sparsity = At(At(config, "sparsity_config"), "format");
  if (!sparsity.is_null() && !Is(sparsity, "dense")) {
    return Unsupported("sparsity_config.format", sparsity, "\"dense\"");
  }
  const json& transforms = At(At(config, "transform_config"), "config_groups");
  if (transforms.is_object() && !transforms.empty()) {
    return Unsupported("transform_config.config_groups", transforms, "none");
  }
  const json& groups = At(config, "config_groups");
  if (!groups.is_object() || groups.empty()) {
    return Unsupported("config_groups", groups, "an object of groups");
  }
  if (out.method == Quantization::kFp8 && groups.size() > 1) {
    return Unsupported("config_groups", groups, "one group (of float-quantized)");
  }
  int with_zeros = 0;
  for (const auto& [name, group] : groups.items()) {
    const std::string path = fmt::format("config_groups.{}.weights", name.substr(0, kMostShown));
    out.zero_points = false;
    SY_RETURN_IF_ERROR(ReadGroup(At(group, "weights"), path, out));
    with_zeros += out.zero_points;
  }
  if (with_zeros > 0 && with_zeros < static_cast<int>(groups.size())) {
    return Unimplemented(
        "config.json: {}.config_groups are in part symmetric; supported: all or none", kField);
  }
  return out;
}

// DeepSeek's.
absl::StatusOr<QuantizationConfig> ReadFp8(const json& config) {
  QuantizationConfig out = {.method = Quantization::kFp8, .inverse_name = true};
  const json& format = At(config, "fmt");
  if (!format.is_null() && !Is(format, "e4m3")) return Unsupported("fmt", format, "\"e4m3\"");
  SY_RETURN_IF_ERROR(ReadBlocks(config, "weight_block_size", "weight_block_size", out));
  return out;
}

absl::StatusOr<QuantizationConfig> ReadGptq(const json& config) {
  QuantizationConfig out = {.method = Quantization::kGptq};
  if (!Is(At(config, "bits"), 4)) return Unsupported("bits", At(config, "bits"), "4");
  if (IsTrue(At(config, "desc_act"), false)) {
    return Unsupported("desc_act", At(config, "desc_act"), "false");
  }
  if (const json& dynamic = At(config, "dynamic"); dynamic.is_object() && !dynamic.empty()) {
    return Unsupported("dynamic", dynamic, "none");
  }
  const json& format = At(config, "checkpoint_format");
  // The first version stores zero points less one.
  if (format.is_null() || Is(format, "gptq")) {
    out.zero_offset = 1;
  } else if (!Is(format, "gptq_v2")) {
    return Unsupported("checkpoint_format", format, "\"gptq\", \"gptq_v2\"");
  }
  return out;
}

absl::StatusOr<QuantizationConfig> ReadAwq(const json& config) {
  if (!Is(At(config, "bits"), 4)) return Unsupported("bits", At(config, "bits"), "4");
  const json& version = At(config, "version");
  if (!version.is_null() && !Is(version, "gemm") && !Is(version, "GEMM")) {
    return Unsupported("version", version, "\"gemm\"");
  }
  if (!IsTrue(At(config, "zero_point"), true)) {
    return Unsupported("zero_point", At(config, "zero_point"), "true");
  }
  return QuantizationConfig{.method = Quantization::kAwq};
}

}  // namespace

absl::StatusOr<QuantizationConfig> ReadQuantization(const json& config) {
  const json& quantization = At(config, kField.data());
  if (quantization.is_null()) return QuantizationConfig{};
  if (!quantization.is_object()) {
    return InvalidArgument("config.json: {} is no object", kField);
  }
  const json& method = At(quantization, "quant_method");
  if (Is(method, "compressed-tensors")) return ReadCompressedTensors(quantization);
  if (Is(method, "fp8")) return ReadFp8(quantization);
  if (Is(method, "mxfp4")) return QuantizationConfig{.method = Quantization::kMxfp4};
  if (Is(method, "gptq")) return ReadGptq(quantization);
  if (Is(method, "awq")) return ReadAwq(quantization);
  return Unsupported("quant_method", method,
                     "\"compressed-tensors\", \"fp8\", \"mxfp4\", \"gptq\", \"awq\"");
}

}  // namespace switchyard
