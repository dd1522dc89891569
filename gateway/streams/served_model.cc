#include "gateway/streams/served_model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <type_traits>

#include "absl/time/clock.h"
#include "gateway/streams/field_error.h"
#include "nlohmann/json.hpp"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/gguf/header.h"
#include "services/model/model_config.h"
#include "services/model/text_fingerprint.h"

namespace switchyard::gateway {
namespace {

using nlohmann::json;

constexpr double kIntMax = 1 << 30;
constexpr double kVocabMax = 1 << 24;

struct NumberRange {
  double low, high;
  bool above_low = false;  // low itself is out
};

// Unset where the key is missing or null; an error names the file and the key.
template <typename T>
absl::Status ReadNumber(const json& object, std::string_view file, const char* key,
                        NumberRange range, std::optional<T>* out) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return absl::OkStatus();
  if (!it->is_number()) {
    return InvalidArgument("{}: {} is {}, expected a number", file, key, it->dump());
  }
  const double value = it->get<double>();
  if (!(range.above_low ? value > range.low : value >= range.low) || value > range.high) {
    return InvalidArgument("{}: {} is {}, not in {}{}, {}]", file, key, it->dump(),
                           range.above_low ? '(' : '[', range.low, range.high);
  }
  if (std::is_integral_v<T> && value != std::trunc(value)) {
    return InvalidArgument("{}: {} is {}, expected a whole number", file, key, it->dump());
  }
  *out = static_cast<T>(value);
  return absl::OkStatus();
}

PromptJson ToPromptJson(const v1::Message& message, bool template_knows_developer) {
  PromptJson out = PromptJson::object();
  const bool rename = message.role() == "developer" && !template_knows_developer;
  out["role"] = rename ? "system" : message.role();
  out["content"] = message.has_content() ? PromptJson(message.content()) : PromptJson(nullptr);
  if (!message.name().empty()) out["name"] = message.name();
  if (!message.reasoning_content().empty()) out["reasoning_content"] = message.reasoning_content();
  if (!message.tool_call_id().empty()) out["tool_call_id"] = message.tool_call_id();
  if (message.tool_calls_size() > 0) {
    PromptJson calls = PromptJson::array();
    for (const v1::ToolCall& call : message.tool_calls()) {
      PromptJson function = PromptJson::object();
      function["name"] = call.name();
      function["arguments"] = call.arguments();
      PromptJson item = PromptJson::object();
      item["id"] = call.id();
      item["type"] = call.type().empty() ? "function" : call.type();
      item["function"] = std::move(function);
      calls.push_back(std::move(item));
    }
    out["tool_calls"] = std::move(calls);
  }
  return out;
}

// Most vocabularies are padded to a round number: a model may choose such an id, if it rarely does.
void TellOfUnknownIds(const Tokenizer& tokenizer, int vocab_size) {
  int unknown = 0;
  for (int32_t id = 0; id < vocab_size; ++id) unknown += tokenizer.IsKnown(id) ? 0 : 1;
  if (unknown == 0) return;
  log::Info(
      "the tokenizer lacks {} of the model's {} ids; where the model chooses one, texts leave "
      "it out",
      unknown, vocab_size);
}

}  // namespace

absl::StatusOr<GenerationDefaults> ReadGenerationDefaults(const json& object) {
  constexpr std::string_view file = "generation_config.json";
  GenerationDefaults out;
  SY_RETURN_IF_ERROR(ReadNumber(object, file, "temperature", {0, 2}, &out.temperature));
  SY_RETURN_IF_ERROR(ReadNumber(object, file, "top_k", {-1, kIntMax}, &out.top_k));
  SY_RETURN_IF_ERROR(ReadNumber(object, file, "top_p", {0, 1, true}, &out.top_p));
  SY_RETURN_IF_ERROR(ReadNumber(object, file, "min_p", {0, 1}, &out.min_p));
  SY_RETURN_IF_ERROR(
      ReadNumber(object, file, "repetition_penalty", {0, 10, true}, &out.repetition_penalty));
  SY_RETURN_IF_ERROR(ReadNumber(object, file, "max_new_tokens", {1, kIntMax}, &out.max_new_tokens));
  const auto sample = object.find("do_sample");
  if (sample != object.end() && sample->is_boolean() && !sample->get<bool>())
    out.temperature = 0.0f;
  return out;
}

absl::StatusOr<std::unique_ptr<ServedModel>> ServedModel::Load(const std::string& path,
                                                               const std::string& name) {
  std::unique_ptr<ServedModel> model(new ServedModel);
  std::error_code ignored;
  const auto canonical = std::filesystem::weakly_canonical(path, ignored);
  model->name_ = !name.empty()        ? name
                 : gguf::IsGguf(path) ? canonical.stem().string()
                                      : canonical.filename().string();
  model->created_ = absl::ToUnixSeconds(absl::Now());
  SY_ASSIGN_OR_RETURN(model->text_fingerprint_, TextFingerprint(path));
  SY_ASSIGN_OR_RETURN(const ModelConfig texts, ReadModelConfig(path));
  const json& config = texts.config;
  if (config.contains("architectures") && config["architectures"].is_array() &&
      !config["architectures"].empty() && config["architectures"][0].is_string()) {
    model->architecture_ = config["architectures"][0].get<std::string>();
  }
  std::optional<int> vocab_size;
  SY_RETURN_IF_ERROR(
      ReadNumber(config, path + "/config.json", "vocab_size", {1, kVocabMax}, &vocab_size));
  if (!vocab_size.has_value()) {
    return InvalidArgument("{}/config.json: vocab_size is missing", path);
  }
  model->vocab_size_ = *vocab_size;
  if (!texts.generation.is_null()) {
    auto defaults = ReadGenerationDefaults(texts.generation);
    if (!defaults.ok()) return Annotate(defaults.status(), path);
    model->defaults_ = *defaults;
  }
  SY_ASSIGN_OR_RETURN(model->tokenizer_, Tokenizer::Load(path));
  const Tokenizer& tokenizer = *model->tokenizer_;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    model->longest_token_bytes_ =
        std::max(model->longest_token_bytes_, tokenizer.TokenBytes(id).size());
  }
  TellOfUnknownIds(tokenizer, model->vocab_size_);
  model->reasoning_ = FindReasoningTokens(tokenizer);
  if (const std::string* text = tokenizer.chat_template(); text != nullptr) {
    ChatTemplateOptions options;
    options.special_tokens = tokenizer.special_tokens();
    SY_ASSIGN_OR_RETURN(model->chat_template_, ChatTemplate::Compile(*text, std::move(options)));
    model->template_knows_developer_ = text->find("developer") != std::string::npos;
  }
  return model;
}

absl::Status ServedModel::CheckName(std::string_view name) const {
  if (name.empty() || name == name_) return absl::OkStatus();
  absl::Status status =
      NotFound("model: \"{}\" is not served here; the model is \"{}\"", name, name_);
  status.SetPayload(ToAbsl(kParamPayload), absl::Cord("model"));
  return status;
}

absl::StatusOr<std::string> ServedModel::RenderChat(const v1::ChatPrompt& chat) const {
  if (!chat_template_) {
    return FieldError("messages", "the model has no chat template; use a plain prompt");
  }
  if (chat.messages().empty()) return FieldError("messages", "is empty");
  PromptJson messages = PromptJson::array();
  for (const v1::Message& message : chat.messages()) {
    messages.push_back(ToPromptJson(message, template_knows_developer_));
  }
  PromptJson extra = nullptr;
  if (!chat.chat_template_kwargs().empty()) {
    extra = PromptJson::parse(chat.chat_template_kwargs(), nullptr, /*allow_exceptions=*/false);
    if (!extra.is_object()) return FieldError("chat_template_kwargs", "not a JSON object");
  }
  const bool open = !chat.has_add_generation_prompt() || chat.add_generation_prompt();
  auto text = chat_template_->Render(messages, nullptr, open, extra);
  if (!text.ok()) {
    return FieldError("messages", "the model's chat template: {}", ToStd(text.status().message()));
  }
  return text;
}

}  // namespace switchyard::gateway
