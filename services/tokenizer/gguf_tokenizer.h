// The tokenizer in a GGUF's metadata, as the tokenizer.json and tokenizer_config.json of the same
// model: what stands behind those two is read by one loader, wherever it came from. Internal to
// services/tokenizer.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace switchyard {

struct TokenizerTrees {
  nlohmann::json tokenizer;  // tokenizer.json
  nlohmann::json config;     // tokenizer_config.json
};

// `metadata` is gguf::Header's. tokenizer.ggml.model "gpt2" (BPE over bytes) with a known "pre", or
// "llama" (SentencePiece's BPE, whose merges are made from the scores as Hugging Face makes them);
// tokenizer.huggingface.json counts more than either. Errors name the key.
absl::StatusOr<TokenizerTrees> TokenizerFromGguf(const nlohmann::json& metadata);

// gguf_pre.cc: one "pre".
struct GgufPreTokenizer {
  std::vector<std::string_view> names;
  std::vector<const char*> splits;  // patterns, one cutting the pieces of the one before
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;  // unless the file says otherwise
};
// Null if it is none that we know.
const GgufPreTokenizer* FindGgufPreTokenizer(std::string_view name);
std::string GgufPreTokenizerNames();

}  // namespace switchyard
