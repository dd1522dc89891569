#include "gateway/api/openai_json.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "gateway/api/json_fields.h"
#include "gateway/streams/field_error.h"
#include "services/base/status.h"

namespace switchyard::gateway {
namespace {

using nlohmann::json;

constexpr int kCompletionTokensDefault = 16;  // OpenAI's for /v1/completions

// Refused unless they say what happens anyway.
bool SaysNothing(const json& value) {
  return value.is_null() || (value.is_array() && value.empty()) ||
         (value.is_boolean() && !value.get<bool>()) ||
         (value.is_string() && value.get_ref<const std::string&>().empty());
}

absl::Status RefuseUnsupported(const json& body) {
  static constexpr std::array kRefused = {"tools",
                                          "functions",
                                          "audio",
                                          "suffix",
                                          "prediction",
                                          "guided_json",
                                          "guided_regex",
                                          "guided_choice",
                                          "guided_grammar",
                                          "structured_outputs",
                                          "use_beam_search",
                                          "prompt_logprobs",
                                          "truncate_prompt_tokens",
                                          "chat_template",
                                          "continue_final_message",
                                          "documents",
                                          "logits_processors",
                                          "web_search_options",
                                          "prompt_embeds",
                                          "allowed_token_ids",
                                          "bad_words"};
  for (const char* field : kRefused) {
    const auto it = body.find(field);
    if (it != body.end() && !SaysNothing(*it)) return FieldError(field, "is not supported");
  }
  static constexpr std::array kChoices = {"tool_choice", "function_call"};
  for (const char* field : kChoices) {
    const auto it = body.find(field);
    if (it == body.end() || it->is_null() || *it == "none" || *it == "auto") continue;
    return FieldError(field, "only \"none\" and \"auto\" are supported");
  }
  if (const auto it = body.find("response_format"); it != body.end() && !it->is_null()) {
    if (!it->is_object() || !it->contains("type") || (*it)["type"] != "text") {
      return FieldError("response_format", "only {{\"type\": \"text\"}} is supported");
    }
  }
  if (const auto it = body.find("modalities"); it != body.end() && !it->is_null()) {
    if (!it->is_array() || it->size() != 1 || (*it)[0] != "text") {
      return FieldError("modalities", "only [\"text\"] is supported");
    }
  }
  return absl::OkStatus();
}

void ReadLogitBias(JsonFields& fields, v1::Sampling* out) {
  const json* value = fields.Find("logit_bias");
  if (value == nullptr) return;
  if (!value->is_object()) return fields.WrongType("logit_bias", "an object of token id to bias");
  for (const auto& [key, bias] : value->items()) {
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size()) {
      return fields.Fail(FieldError("logit_bias", "the key \"{}\" is not a token id", key));
    }
    if (!bias.is_number()) {
      return fields.Fail(FieldError("logit_bias", "the bias of token {} is not a number", id));
    }
    const double number = bias.get<double>();
    if (!(std::abs(number) <= 100)) {
      return fields.Fail(FieldError("logit_bias", "{} is not in [-100, 100]", number));
    }
    (*out->mutable_logit_bias())[id] = static_cast<float>(number);
  }
}

void ReadSampling(JsonFields& fields, v1::Sampling* out) {
  if (const auto v = fields.Float("temperature")) out->set_temperature(*v);
  if (const auto v = fields.Int32("top_k")) out->set_top_k(*v);
  if (const auto v = fields.Float("top_p")) out->set_top_p(*v);
  if (const auto v = fields.Float("min_p")) out->set_min_p(*v);
  if (const auto v = fields.Float("repetition_penalty")) out->set_repetition_penalty(*v);
  if (const auto v = fields.Float("presence_penalty")) out->set_presence_penalty(*v);
  if (const auto v = fields.Float("frequency_penalty")) out->set_frequency_penalty(*v);
  if (const auto v = fields.Bits64("seed")) out->set_seed(*v);
  if (const auto v = fields.Bool("ignore_eos")) out->set_ignore_eos(*v);
  ReadLogitBias(fields, out);
}

void ReadStops(JsonFields& fields, v1::GenerateRequest* out) {
  if (const json* stop = fields.Find("stop"); stop != nullptr) {
    if (stop->is_string()) {
      out->add_stop(stop->get<std::string>());
    } else if (stop->is_array()) {
      for (const json& item : *stop) {
        if (!item.is_string()) return fields.WrongType("stop", "a string or an array of strings");
        out->add_stop(item.get<std::string>());
      }
    } else {
      return fields.WrongType("stop", "a string or an array of strings");
    }
  }
  if (const json* ids = fields.Find("stop_token_ids"); ids != nullptr) {
    if (!ids->is_array()) return fields.WrongType("stop_token_ids", "an array of token ids");
    for (const json& item : *ids) {
      const auto id = AsInt32(item);
      if (!id.has_value()) return fields.WrongType("stop_token_ids", "an array of token ids");
      out->add_stop_token_ids(*id);
    }
  }
}

void ReadChoices(JsonFields& fields, v1::GenerateRequest* out) {
  if (const auto v = fields.Int32("n")) {
    if (*v < 1) fields.Fail(FieldError("n", "{} is less than 1", *v));
    out->set_n(*v);
  }
  const int n = out->n() == 0 ? 1 : out->n();
  if (const auto v = fields.Int32("best_of"); v.has_value() && *v != n) {
    fields.Fail(
        FieldError("best_of", "{} is not n, which is {}; choosing is not supported", *v, n));
  }
}

// What chat and completions have in common.
void ReadCommon(JsonFields& fields, ApiCall* call, v1::GenerateRequest* out) {
  if (const auto v = fields.String("model")) out->set_model(*v);
  ReadSampling(fields, out->mutable_sampling());
  ReadStops(fields, out);
  ReadChoices(fields, out);
  if (const auto v = fields.Int32("max_tokens")) out->set_max_tokens(*v);
  if (const auto v = fields.Int32("min_tokens")) out->set_min_tokens(*v);
  if (const auto v = fields.Bool("include_stop_str_in_output")) {
    out->set_include_stop_str_in_output(*v);
  }
  if (const auto v = fields.Bool("return_token_ids")) out->set_return_token_ids(*v);
  if (const auto v = fields.Bool("return_routed_experts")) out->set_return_routed_experts(*v);
  if (const auto v = fields.Bool("skip_special_tokens")) out->set_skip_special_tokens(*v);
  if (const auto v = fields.Bool("add_special_tokens")) out->set_add_special_tokens(*v);
  if (const auto v = fields.Int32("priority")) out->set_priority(*v);
  if (const auto v = fields.String("request_id")) out->set_request_id(*v);
  if (const auto v = fields.String("cache_salt")) out->set_cache_salt(*v);
  call->stream = fields.Bool("stream").value_or(false);
  const json* options = fields.Find("stream_options");
  if (options == nullptr) return;
  if (!options->is_object()) return fields.WrongType("stream_options", "an object");
  if (!call->stream) {
    return fields.Fail(FieldError("stream_options", "is only for requests with \"stream\": true"));
  }
  JsonFields inner(*options, "stream_options.");
  call->include_usage = inner.Bool("include_usage").value_or(false);
  fields.Fail(inner.status());
}

// "content": text, parts of text, or null.
void ReadContent(JsonFields& fields, v1::Message* out) {
  const json* content = fields.Find("content");
  if (content == nullptr) return;
  if (content->is_string()) return out->set_content(content->get<std::string>());
  if (!content->is_array()) return fields.WrongType("content", "a string or an array of parts");
  std::string text;
  for (size_t i = 0; i < content->size(); ++i) {
    JsonFields part((*content)[i], fields.Name("content[" + std::to_string(i) + "]."));
    const json& value = (*content)[i];
    if (!value.is_object()) {
      return fields.Fail(FieldError(part.Name("type"), "the part is not an object"));
    }
    const std::string type = part.String("type").value_or("");
    if (part.status().ok() && type != "text") {
      return fields.Fail(
          FieldError(part.Name("type"), "\"{}\" is not supported, only \"text\" is", type));
    }
    const auto piece = part.String("text");
    if (!piece.has_value()) part.WrongType("text", "a string");
    if (!part.status().ok()) return fields.Fail(part.status());
    if (i > 0) text += '\n';
    text += *piece;
  }
  out->set_content(std::move(text));
}

void ReadToolCalls(JsonFields& fields, v1::Message* out) {
  const json* calls = fields.Find("tool_calls");
  if (calls == nullptr) return;
  if (!calls->is_array()) return fields.WrongType("tool_calls", "an array");
  for (size_t i = 0; i < calls->size(); ++i) {
    const std::string prefix = fields.Name("tool_calls[" + std::to_string(i) + "].");
    const json& value = (*calls)[i];
    if (!value.is_object() || !value.contains("function") || !value["function"].is_object()) {
      return fields.Fail(FieldError(prefix + "function", "is missing or not an object"));
    }
    JsonFields call(value, prefix);
    JsonFields function(value["function"], prefix + "function.");
    v1::ToolCall* to = out->add_tool_calls();
    to->set_id(call.String("id").value_or(""));
    to->set_type(call.String("type").value_or("function"));
    to->set_name(function.String("name").value_or(""));
    to->set_arguments(function.String("arguments").value_or(""));
    fields.Fail(call.status());
    fields.Fail(function.status());
  }
}

absl::Status ReadMessage(const json& value, size_t index, v1::Message* out) {
  const std::string prefix = "messages[" + std::to_string(index) + "].";
  if (!value.is_object()) {
    return FieldError("messages[" + std::to_string(index) + "]", "is not an object");
  }
  JsonFields fields(value, prefix);
  if (fields.Find("role") == nullptr) return FieldError(prefix + "role", "is missing");
  const std::string role = fields.String("role").value_or("");
  SY_RETURN_IF_ERROR(fields.status());
  static constexpr std::array kRoles = {"system", "developer", "user", "assistant", "tool"};
  if (std::find(kRoles.begin(), kRoles.end(), role) == kRoles.end()) {
    return FieldError(prefix + "role",
                      "\"{}\" is not one of system, developer, user, assistant, tool", role);
  }
  out->set_role(role);
  ReadContent(fields, out);
  ReadToolCalls(fields, out);
  if (const auto v = fields.String("reasoning_content")) out->set_reasoning_content(*v);
  if (const auto v = fields.String("tool_call_id")) out->set_tool_call_id(*v);
  if (const auto v = fields.String("name")) out->set_name(*v);
  SY_RETURN_IF_ERROR(fields.status());
  if (!out->has_content() && role != "assistant") {
    return FieldError(prefix + "content", "is missing");
  }
  return absl::OkStatus();
}

absl::Status ReadChatPrompt(JsonFields& fields, v1::ChatPrompt* out) {
  const json* messages = fields.Find("messages");
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    return FieldError("messages", "expected an array of at least one message");
  }
  for (size_t i = 0; i < messages->size(); ++i) {
    SY_RETURN_IF_ERROR(ReadMessage((*messages)[i], i, out->add_messages()));
  }
  if (const auto v = fields.Bool("add_generation_prompt")) out->set_add_generation_prompt(*v);
  json extra = json::object();
  if (const json* kwargs = fields.Find("chat_template_kwargs"); kwargs != nullptr) {
    if (!kwargs->is_object()) {
      fields.WrongType("chat_template_kwargs", "an object");
    } else {
      extra = *kwargs;
    }
  }
  // A template variable of the models that know it.
  if (const auto v = fields.String("reasoning_effort")) extra["reasoning_effort"] = *v;
  if (!extra.empty()) out->set_chat_template_kwargs(extra.dump());
  return fields.status();
}

absl::Status ReadIdArray(const json& value, v1::TokenIds* out) {
  for (size_t i = 0; i < value.size(); ++i) {
    const auto id = AsInt32(value[i]);
    if (!id.has_value()) return FieldError("prompt", "item {} is not a token id", i);
    out->add_ids(*id);
  }
  return absl::OkStatus();
}

// One request a prompt: text, texts, token ids, or arrays of token ids.
absl::Status ReadPrompts(const json& body, const v1::GenerateRequest& common, ApiCall* call) {
  const auto it = body.find("prompt");
  if (it == body.end() || it->is_null()) {
    return FieldError("prompt", "is missing");
  }
  const json& prompt = *it;
  const auto add = [&]() -> v1::GenerateRequest* {
    call->requests.push_back(common);
    return &call->requests.back();
  };
  if (prompt.is_string()) {
    add()->set_prompt(prompt.get<std::string>());
    return absl::OkStatus();
  }
  if (!prompt.is_array() || prompt.empty()) {
    return FieldError(
        "prompt", "expected a string, an array of strings, of token ids, or of arrays of those");
  }
  if (prompt[0].is_number()) return ReadIdArray(prompt, add()->mutable_prompt_ids());
  if (prompt.size() > kPromptsMax) {
    return FieldError("prompt", "{} prompts, allowed are {}", prompt.size(), kPromptsMax);
  }
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i].is_string() && prompt[0].is_string()) {
      add()->set_prompt(prompt[i].get<std::string>());
    } else if (prompt[i].is_array() && prompt[0].is_array()) {
      SY_RETURN_IF_ERROR(ReadIdArray(prompt[i], add()->mutable_prompt_ids()));
    } else {
      return FieldError("prompt", "item {} is {}, unlike the first", i, prompt[i].type_name());
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ApiCall> ParseChatCall(std::string_view text) {
  SY_ASSIGN_OR_RETURN(const json body, ParseBody(text));
  SY_RETURN_IF_ERROR(RefuseUnsupported(body));
  ApiCall call;
  call.chat = true;
  v1::GenerateRequest& request = call.requests.emplace_back();
  JsonFields fields(body);
  ReadCommon(fields, &call, &request);
  if (const auto v = fields.Int32("max_completion_tokens")) request.set_max_tokens(*v);
  const bool logprobs = fields.Bool("logprobs").value_or(false);
  const auto top = fields.Int32("top_logprobs");
  if (top.has_value() && !logprobs && *top != 0) {
    return FieldError("top_logprobs", "needs \"logprobs\": true");
  }
  if (logprobs) request.set_top_logprobs(top.value_or(0));
  if (fields.Bool("echo").value_or(false)) return FieldError("echo", "is not supported for chat");
  SY_RETURN_IF_ERROR(fields.status());
  SY_RETURN_IF_ERROR(ReadChatPrompt(fields, request.mutable_chat()));
  return call;
}

absl::StatusOr<ApiCall> ParseCompletionCall(std::string_view text) {
  SY_ASSIGN_OR_RETURN(const json body, ParseBody(text));
  SY_RETURN_IF_ERROR(RefuseUnsupported(body));
  ApiCall call;
  v1::GenerateRequest common;
  JsonFields fields(body);
  ReadCommon(fields, &call, &common);
  if (!common.has_max_tokens()) common.set_max_tokens(kCompletionTokensDefault);
  if (const auto v = fields.Int32("logprobs")) common.set_top_logprobs(*v);
  if (const auto v = fields.Bool("echo")) common.set_echo(*v);
  SY_RETURN_IF_ERROR(fields.status());
  SY_RETURN_IF_ERROR(ReadPrompts(body, common, &call));
  return call;
}

absl::StatusOr<v1::TokenizeRequest> ParseTokenizeCall(std::string_view text) {
  SY_ASSIGN_OR_RETURN(const json body, ParseBody(text));
  v1::TokenizeRequest out;
  JsonFields fields(body);
  if (const auto v = fields.String("model")) out.set_model(*v);
  if (const auto v = fields.Bool("add_special_tokens")) out.set_add_special_tokens(*v);
  if (fields.Find("messages") != nullptr) {
    SY_RETURN_IF_ERROR(ReadChatPrompt(fields, out.mutable_chat()));
  } else if (const auto v = fields.String("prompt")) {
    out.set_prompt(*v);
  } else if (fields.status().ok()) {
    return FieldError("prompt", "is missing: one of prompt and messages is needed");
  }
  SY_RETURN_IF_ERROR(fields.status());
  return out;
}

absl::StatusOr<v1::DetokenizeRequest> ParseDetokenizeCall(std::string_view text) {
  SY_ASSIGN_OR_RETURN(const json body, ParseBody(text));
  v1::DetokenizeRequest out;
  JsonFields fields(body);
  if (const auto v = fields.String("model")) out.set_model(*v);
  const json* tokens = fields.Find("tokens");
  if (tokens == nullptr || !tokens->is_array()) {
    return FieldError("tokens", "expected an array of token ids");
  }
  for (size_t i = 0; i < tokens->size(); ++i) {
    const auto id = AsInt32((*tokens)[i]);
    if (!id.has_value()) return FieldError("tokens", "item {} is not a token id", i);
    out.add_ids(*id);
  }
  SY_RETURN_IF_ERROR(fields.status());
  return out;
}

}  // namespace switchyard::gateway
