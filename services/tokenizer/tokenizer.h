// Text to token ids and back, from a Hugging Face tokenizer.json or a GGUF's metadata: BPE over
// bytes (DeepSeek, Qwen, gpt-oss, OLMoE) or over characters with byte fallback (Mixtral). Ids and
// texts equal those of the Hugging Face `tokenizers` library. A part of tokenizer.json that is not
// supported is refused at load by its name.
//
// A Tokenizer is immutable and thread-safe; calls from several threads do not wait for one another
// (each takes its scratch from a small pool). Bytes that are not UTF-8 encode as U+FFFD, one for
// each maximal bad part. Work is bounded by O(n log n) for every text; a split pattern that
// backtracks without end gives an error.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

struct EncodeOptions {
  // Adds what tokenizer.json's post processor adds, and BOS where tokenizer_config.json asks for it
  // (add_bos_token) and the post processor does not. Off for rendered chats: they already hold it.
  bool add_special_tokens = true;
};

// A chat template of the model: "default", or one of several by name ("tool_use", "rag", …).
struct NamedTemplate {
  std::string name;
  std::string text;
};

// The texts of the files that make a tokenizer.
struct TokenizerFiles {
  std::string tokenizer_json;
  std::string tokenizer_config_json;  // may be empty
  std::string chat_template_jinja;    // may be empty; wins over the default one of the config
};

class Tokenizer {
 public:
  // Reads a directory's tokenizer.json and, where they are, tokenizer_config.json and
  // chat_template.jinja; or the metadata of a .gguf file.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromFiles(const TokenizerFiles& files);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // INVALID_ARGUMENT where the text makes a split pattern run into its limits.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options = {}) const;

  // Ids that the vocabulary lacks are left out. Bytes that make no character become U+FFFD.
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const;

  // The bytes that a token stands for, possibly a part of a character; empty for an unknown id.
  // Valid as long as the tokenizer.
  std::string_view TokenBytes(int32_t id) const;
  // The token as the vocabulary spells it ("Ġthe", "▁the", "<think>"); empty for an unknown id.
  std::string_view TokenContent(int32_t id) const;

  // The id of a token by its spelling in the vocabulary; nothing if there is none.
  std::optional<int32_t> IdOf(std::string_view content) const;

  // One more than the largest id; ids in between may be unused.
  int32_t vocab_size() const;
  bool IsKnown(int32_t id) const;
  // An added token (user and think markers too), special or not.
  bool IsAdded(int32_t id) const;
  // A special token: left out of texts by skip_special.
  bool IsSpecial(int32_t id) const;

  // From tokenizer_config.json; nothing where it names none or an unknown one.
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  const std::string& bos_token() const;  // "" if none
  const std::string& eos_token() const;  // "" if none
  bool add_bos_token() const;
  // "bos_token", "eos_token", "pad_token", … → content, those that are set: what chat templates
  // see.
  const std::map<std::string, std::string>& special_tokens() const;
  // Largest length that the tokenizer names, 0 if none.
  int64_t model_max_length() const;

  const std::vector<NamedTemplate>& chat_templates() const;
  // The template's text, nullptr if there is none of that name.
  const std::string* chat_template(std::string_view name = "default") const;

 private:
  friend class StreamDecoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const std::string& path);

  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
