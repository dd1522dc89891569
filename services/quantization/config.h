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
  // X.weight F8_E4M3 with scales for blocks of rows and columns (DeepSeek: X.weight_scale_inv) or,
  // by compressed-tensors' "float-quantized", also for each row or all of X (X.weight_scale).
  kFp8,
  // gpt-oss: X_blocks [experts, out, in / 32, 16] and X_scales [experts, out, in / 32].
  kMxfp4,
  // 4 bits: X.qweight int32 [in / 8, out] and [in, out / 8], X.qzeros [groups, out / 8], X.scales
  // [groups, out]; of GPTQ also X.g_idx [in].
  kGptq,
  kAwq,
};

struct QuantizationConfig {
  Quantization method = Quantization::kNone;
  bool zero_points = false;  // of kInt4
  int zero_offset = 0;       // of kGptq: what is added to zero points as they are stored
  // Of kFp8, rows and columns that share a scale; 0: what the scales' shape says.
  int64_t block_rows = 0, block_columns = 0;
  bool inverse_name = false;  // of kFp8: weight_scale_inv
};

// `config` is the whole config.json; without quantization_config the method is kNone.
// INVALID_ARGUMENT or UNIMPLEMENTED names the field, what it is and what is supported.
absl::StatusOr<QuantizationConfig> ReadQuantization(const nlohmann::json& config);

}  // namespace switchyard
