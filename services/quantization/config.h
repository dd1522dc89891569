// What the quantization_config of a Hugging Face config.json says of the tensors beside it, in one
// vocabulary for all tools that write such checkpoints. The model's config and the checkpoint's
// tensors are read by it alike; which modules are quantised is told by their tensors.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "absl/status/statusor.h"

namespace switchyard {

enum class Quantization {
  kNone,
  // compressed-tensors, "int-quantized": X.weight int8, X.weight_scale [out, 1] or [out, groups].
  kInt8,
  // compressed-tensors, "pack-quantized" of 4 bits: X.weight_packed, X.weight_scale [out, groups]
  // and, if not symmetric, X.weight_zero_point.
  kInt4,
};

struct QuantizationConfig {
  Quantization method = Quantization::kNone;
  bool zero_points = false;  // of kInt4
};

// `config` is the whole config.json; without quantization_config the method is kNone.
// INVALID_ARGUMENT or UNIMPLEMENTED names the field, what it is and what is supported.
absl::StatusOr<QuantizationConfig> ReadQuantization(const nlohmann::json& config);

}  // namespace switchyard
