// What a gateway knows of its model: the texts of its directory or .gguf file, no weights.
// Immutable after Load, hence thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "gateway/prompt/chat_template.h"
#include "gateway/text/reasoning_split.h"
#include "services/tokenizer/tokenizer.h"
#include "switchyard/v1/inference.pb.h"

namespace switchyard::gateway {

// Of generation_config.json; what it leaves out is unset.
struct GenerationDefaults {
  std::optional<float> temperature;
  std::optional<int> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<int> max_new_tokens;
};

// Of the file as an object. do_sample false means greedy, whatever temperature stands beside it.
absl::StatusOr<GenerationDefaults> ReadGenerationDefaults(const nlohmann::json& object);

class ServedModel {
 public:
  // `path`: the model's directory or .gguf file. `name`: what requests call it; empty: the name of
  // the directory, or of the file without ".gguf".
  static absl::StatusOr<std::unique_ptr<ServedModel>> Load(const std::string& path,
                                                           const std::string& name);

  const std::string& name() const { return name_; }
  int64_t created() const { return created_; }  // seconds since the epoch, of this process
  const std::string& architecture() const { return architecture_; }
  const std::string& text_fingerprint() const { return text_fingerprint_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const GenerationDefaults& defaults() const { return defaults_; }
  const std::optional<ReasoningTokens>& reasoning() const { return reasoning_; }
  int vocab_size() const { return vocab_size_; }  // of config.json: ids that the model has
  // No token stands for more bytes.
  size_t longest_token_bytes() const { return longest_token_bytes_; }

  // NOT_FOUND unless `name` is empty or the served one.
  absl::Status CheckName(std::string_view name) const;

  // The conversation as the model's template writes it. FieldError "messages" where the template
  // refuses it, or where the model has none.
  absl::StatusOr<std::string> RenderChat(const v1::ChatPrompt& chat) const;

 private:
  ServedModel() = default;

  std::string name_;
  int64_t created_ = 0;
  std::string architecture_;
  std::string text_fingerprint_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_template_;  // null: the model has none
  bool template_knows_developer_ = false;
  GenerationDefaults defaults_;
  std::optional<ReasoningTokens> reasoning_;
  int vocab_size_ = 0;
  size_t longest_token_bytes_ = 1;
};

}  // namespace switchyard::gateway
