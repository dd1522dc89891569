// What a model's config.json and generation_config.json say, whichever form the model comes in: a
// Hugging Face directory, or a GGUF file whose metadata is read as the config.json of the same
// model. Every reader behind it knows one vocabulary, Hugging Face's.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/gguf/header.h"

namespace switchyard {

// How the weights of a checkpoint lie, where it is not as config.json's architecture has them in
// Hugging Face's own files.
struct WeightForm {
  bool split_kv_b = false;        // AttentionSpec::split_kv_b
  bool apart_experts = false;     // of gpt-oss: one tensor an expert and role, none stacked
  bool interleaved_rope = false;  // rows of q and k were permuted for RopeLayout::kInterleaved
};

struct ModelConfig {
  nlohmann::json config;      // an object
  nlohmann::json generation;  // an object; null: the model has none
  WeightForm form;
};

// `path` is a directory or a .gguf file. NOT_FOUND, INVALID_ARGUMENT or UNIMPLEMENTED names file
// and field.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path);

// The same of a GGUF model's headers (gguf::ReadModel). The architectures deepseek2, qwen3moe,
// olmoe, llama (with experts: Mixtral) and gpt-oss; keys as convert_hf_to_gguf.py of llama.cpp
// writes them. What a key's absence means is what llama.cpp takes it to mean.
absl::StatusOr<ModelConfig> ConfigFromGguf(const std::vector<gguf::Header>& files);

}  // namespace switchyard
