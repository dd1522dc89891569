#include "gateway/prompt/chat_template.h"

#include <utility>

#include "gateway/prompt/jinja/template.h"
#include "services/base/status.h"

namespace switchyard::gateway {

using jinja::Value;

ChatTemplate::ChatTemplate(std::unique_ptr<jinja::Template> compiled, ChatTemplateOptions options)
    : compiled_(std::move(compiled)), options_(std::move(options)) {}

ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Compile(std::string_view text,
                                                                    ChatTemplateOptions options) {
  auto compiled = jinja::Template::Compile(text);
  if (!compiled.ok()) return Annotate(compiled.status(), "chat template");
  if (!options.now) options.now = [] { return std::time(nullptr); };
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(*compiled), std::move(options)));
}

absl::StatusOr<std::string> ChatTemplate::Render(const PromptJson& messages,
                                                 const PromptJson& tools,
                                                 bool add_generation_prompt,
                                                 const PromptJson& extra) const {
  if (!messages.is_array()) return InvalidArgument("messages: an array expected");
  std::map<std::string, Value> variables;
  SY_ASSIGN_OR_RETURN(variables["messages"], jinja::FromJson(messages));
  SY_ASSIGN_OR_RETURN(variables["tools"], jinja::FromJson(tools));
  variables["documents"] = Value();
  variables["add_generation_prompt"] = Value(add_generation_prompt);
  for (const auto& [name, content] : options_.special_tokens) variables[name] = Value(content);
  if (extra.is_object()) {
    for (const auto& item : extra.items()) {
      if (item.key() == "messages" || item.key() == "tools") {
        return InvalidArgument("chat_template_kwargs: {} has a field of its own", item.key());
      }
      SY_ASSIGN_OR_RETURN(variables[item.key()], jinja::FromJson(item.value()));
    }
  } else if (!extra.is_null()) {
    return InvalidArgument("chat_template_kwargs: an object expected");
  }
  return compiled_->Render(variables, options_.now);
}

}  // namespace switchyard::gateway
