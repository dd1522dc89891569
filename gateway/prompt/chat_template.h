// A model's own chat template (Jinja), compiled once and rendered per request, as
// transformers' apply_chat_template does it: trim_blocks, lstrip_blocks, tojson that keeps the
// order of keys, raise_exception, strftime_now. Immutable and thread-safe. A render is bounded in
// steps, depth and output.
#pragma once

#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace switchyard::gateway {

// Keeps the order of keys, which templates print. An nlohmann::json converts, in key order.
using PromptJson = nlohmann::ordered_json;

struct ChatTemplateOptions {
  // Variables such as bos_token, as Tokenizer::special_tokens() has them.
  std::map<std::string, std::string> special_tokens;
  // What strftime_now reads, in local time. Empty: the system's clock.
  std::function<std::time_t()> now;
};

namespace jinja {
class Template;
}

class ChatTemplate {
 public:
  // INVALID_ARGUMENT with the line for a template that does not parse.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Compile(std::string_view text,
                                                               ChatTemplateOptions options);
  ~ChatTemplate();

  // messages: an array of objects as in OpenAI's chat API. tools: an array, or null for none.
  // extra: an object of further variables (enable_thinking, reasoning_effort, …), or null; it wins
  // over special tokens and add_generation_prompt. INVALID_ARGUMENT with the template's own words
  // where it calls raise_exception, and with the line where a value does not fit;
  // RESOURCE_EXHAUSTED beyond the bounds.
  absl::StatusOr<std::string> Render(const PromptJson& messages, const PromptJson& tools,
                                     bool add_generation_prompt, const PromptJson& extra) const;

 private:
  ChatTemplate(std::unique_ptr<jinja::Template> compiled, ChatTemplateOptions options);

  std::unique_ptr<jinja::Template> compiled_;
  ChatTemplateOptions options_;
};

}  // namespace switchyard::gateway
