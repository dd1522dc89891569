// Reads the config.json of a Hugging Face checkpoint into a ModelSpec. Nothing is guessed: what we
// cannot compute exactly (an architecture, a rope type, a dtype, a quantisation) is refused with
// the file, the field, its value and what is supported. Both spellings of published configs are
// read: rope_theta/rope_scaling/torch_dtype and rope_parameters/dtype. Defaults of absent fields
// are those of the family's configuration class in Hugging Face transformers; sizes have none.
//
// A spec that was returned satisfies: all sizes are positive and bounded (each product of two of
// them fits 63 bits), kv_heads divides heads, rope.dim is even, groups divide experts,
// topk_groups <= groups, 1 <= top_k <= experts in the kept groups, eos ids lie in the vocabulary,
// at least one layer has experts. Nothing downstream has to test that again.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "services/model/spec.h"

namespace switchyard {

struct ModelConfig;  // services/model/model_config.h

// INVALID_ARGUMENT: broken JSON, a missing or impossible field. UNIMPLEMENTED: a valid model that
// we do not support. generation_config_json may be empty (no such file).
absl::StatusOr<ModelSpec> SpecFromHf(std::string_view config_json,
                                     std::string_view generation_config_json);

// The same of both files as objects, with the weights as `form` says.
absl::StatusOr<ModelSpec> SpecFromConfig(const ModelConfig& config);

// Of a model's directory or .gguf file (services/model/model_config.h). Errors name the path.
absl::StatusOr<ModelSpec> LoadSpec(const std::string& path);

}  // namespace switchyard
