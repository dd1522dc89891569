#include "gateway/streams/request_plan.h"

#include <algorithm>
#include <cmath>

#include "gateway/streams/field_error.h"
#include "services/base/status.h"

namespace switchyard::gateway {
namespace {

constexpr float kRepetitionPenaltyMax = 10;
constexpr float kTemperatureMax = 2;
constexpr int kPriorityMax = 100;  // either way

absl::Status CheckRange(std::string_view field, double value, double low, double high) {
  // Not (value < low || value > high): NaN is in no range.
  if (value >= low && value <= high) return absl::OkStatus();
  return FieldError(field, "{} is not in [{}, {}]", value, low, high);
}

absl::Status CheckAbove(std::string_view field, double value, double low, double high) {
  if (value > low && value <= high) return absl::OkStatus();
  return FieldError(field, "{} is not in ({}, {}]", value, low, high);
}

using Ids = google::protobuf::RepeatedField<int32_t>;

absl::Status CheckTokenIds(std::string_view field, const Ids& ids, int vocab) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab) {
      return FieldError(field, "id {} at index {} is not in [0, {}]", ids[i], i, vocab - 1);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSampling(const v1::Sampling& s, int vocab) {
  if (s.has_temperature()) {
    SY_RETURN_IF_ERROR(CheckRange("temperature", s.temperature(), 0, kTemperatureMax));
  }
  if (s.has_top_k()) SY_RETURN_IF_ERROR(CheckRange("top_k", s.top_k(), -1, 1 << 30));
  if (s.has_top_p()) SY_RETURN_IF_ERROR(CheckAbove("top_p", s.top_p(), 0, 1));
  if (s.has_min_p()) SY_RETURN_IF_ERROR(CheckRange("min_p", s.min_p(), 0, 1));
  if (s.has_repetition_penalty()) {
    SY_RETURN_IF_ERROR(
        CheckAbove("repetition_penalty", s.repetition_penalty(), 0, kRepetitionPenaltyMax));
  }
  if (s.has_presence_penalty()) {
    SY_RETURN_IF_ERROR(CheckRange("presence_penalty", s.presence_penalty(), -2, 2));
  }
  if (s.has_frequency_penalty()) {
    SY_RETURN_IF_ERROR(CheckRange("frequency_penalty", s.frequency_penalty(), -2, 2));
  }
  if (s.logit_bias_size() > kLogitBiasMax) {
    return FieldError("logit_bias", "{} entries, allowed are {}", s.logit_bias_size(),
                      kLogitBiasMax);
  }
  for (const auto& [id, bias] : s.logit_bias()) {
    if (id < 0 || id >= vocab) {
      return FieldError("logit_bias", "id {} is not in [0, {}]", id, vocab - 1);
    }
    SY_RETURN_IF_ERROR(CheckRange("logit_bias", bias, -100, 100));
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const v1::GenerateRequest& r, int vocab) {
  if (r.stop_size() > kStopStringsMax) {
    return FieldError("stop", "{} strings, allowed are {}", r.stop_size(), kStopStringsMax);
  }
  for (const std::string& stop : r.stop()) {
    if (stop.empty() || stop.size() > kStopStringBytesMax) {
      return FieldError("stop", "a string of {} bytes, allowed are 1 to {}", stop.size(),
                        kStopStringBytesMax);
    }
  }
  if (r.stop_token_ids_size() > kStopTokenIdsMax) {
    return FieldError("stop_token_ids", "{} ids, allowed are {}", r.stop_token_ids_size(),
                      kStopTokenIdsMax);
  }
  return CheckTokenIds("stop_token_ids", r.stop_token_ids(), vocab);
}

absl::Status CheckLimits(const v1::GenerateRequest& r, int vocab) {
  SY_RETURN_IF_ERROR(CheckSampling(r.sampling(), vocab));
  SY_RETURN_IF_ERROR(CheckStops(r, vocab));
  if (r.has_max_tokens() && r.max_tokens() < 1 && !(r.echo() && r.max_tokens() == 0)) {
    return FieldError("max_tokens", "{} is less than 1", r.max_tokens());
  }
  if (r.min_tokens() < 0) return FieldError("min_tokens", "{} is less than 0", r.min_tokens());
  if (r.has_max_tokens() && r.min_tokens() > r.max_tokens()) {
    return FieldError("min_tokens", "{} is more than max_tokens, {}", r.min_tokens(),
                      r.max_tokens());
  }
  SY_RETURN_IF_ERROR(CheckRange("n", r.n() == 0 ? 1 : r.n(), 1, kChoicesMax));
  if (r.has_top_logprobs()) {
    SY_RETURN_IF_ERROR(CheckRange("top_logprobs", r.top_logprobs(), 0, kTopLogprobsMax));
  }
  SY_RETURN_IF_ERROR(CheckRange("priority", r.priority(), -kPriorityMax, kPriorityMax));
  if (r.cache_salt().size() > kCacheSaltBytesMax) {
    return FieldError("cache_salt", "{} bytes, allowed are {}", r.cache_salt().size(),
                      kCacheSaltBytesMax);
  }
  if (r.echo() && r.has_chat()) return FieldError("echo", "is not for chat");
  return absl::OkStatus();
}

absl::Status TooLong(std::string_view field, std::string_view tokens, int length_max) {
  return FieldError(field,
                    "the prompt has {} tokens; the model takes {} for prompt and output together, "
                    "so at most {} of prompt",
                    tokens, length_max, length_max - 1);
}

// The prompt's ids into plan.submit, its text into plan.echo_text.
absl::Status PlanPrompt(const v1::GenerateRequest& r, const ServedModel& model, int length_max,
                        RequestPlan* plan) {
  std::vector<int32_t> ids;
  const std::string_view field = r.has_chat() ? "messages" : "prompt";
  if (r.has_chat()) {
    SY_ASSIGN_OR_RETURN(const std::string text, model.RenderChat(r.chat()));
    // A rendered chat holds its special tokens already.
    SY_ASSIGN_OR_RETURN(ids,
                        TokenisePrompt(model, text, r.add_special_tokens(), length_max, field));
    if (model.reasoning().has_value()) {
      plan->reasoning = model.reasoning();
      plan->starts_in_reasoning = EndsInsideReasoning(model.tokenizer(), *model.reasoning(), ids);
    }
  } else if (r.has_prompt()) {
    const bool special = !r.has_add_special_tokens() || r.add_special_tokens();
    SY_ASSIGN_OR_RETURN(ids, TokenisePrompt(model, r.prompt(), special, length_max, field));
    if (plan->echo) plan->echo_text = r.prompt();
  } else if (r.has_prompt_ids()) {
    SY_RETURN_IF_ERROR(CheckTokenIds(field, r.prompt_ids().ids(), model.vocab_size()));
    ids.assign(r.prompt_ids().ids().begin(), r.prompt_ids().ids().end());
    if (plan->echo) plan->echo_text = model.tokenizer().Decode(ids, plan->skip_special);
  } else {
    return FieldError(field, "is missing: one of chat, prompt and prompt_ids is needed");
  }
  if (ids.empty()) return FieldError(field, "the prompt has no tokens");
  if (ids.size() >= static_cast<size_t>(length_max)) {
    return TooLong(field, std::to_string(ids.size()), length_max);
  }
  plan->submit.mutable_prompt()->Assign(ids.begin(), ids.end());
  return absl::OkStatus();
}

template <typename T>
T FirstOf(bool has, T value, const std::optional<T>& second, T last) {
  return has ? value : second.value_or(last);
}

void PlanSampling(const v1::Sampling& s, const GenerationDefaults& d, uint64_t drawn_seed,
                  internal::v1::RouterSampling* out) {
  out->set_temperature(FirstOf(s.has_temperature(), s.temperature(), d.temperature, 1.0f));
  out->set_top_k(std::max(0, FirstOf(s.has_top_k(), s.top_k(), d.top_k, 0)));
  out->set_top_p(FirstOf(s.has_top_p(), s.top_p(), d.top_p, 1.0f));
  out->set_min_p(FirstOf(s.has_min_p(), s.min_p(), d.min_p, 0.0f));
  out->set_repetition_penalty(
      FirstOf(s.has_repetition_penalty(), s.repetition_penalty(), d.repetition_penalty, 1.0f));
  out->set_presence_penalty(s.presence_penalty());
  out->set_frequency_penalty(s.frequency_penalty());
  for (const auto& [id, bias] : s.logit_bias()) (*out->mutable_logit_bias())[id] = bias;
  out->set_seed(s.has_seed() ? s.seed() : drawn_seed);
  out->set_ignore_eos(s.ignore_eos());
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> TokenisePrompt(const ServedModel& model, std::string_view text,
                                                    bool add_special_tokens, int length_max,
                                                    std::string_view field) {
  const size_t least = text.size() / model.longest_token_bytes();
  if (least > static_cast<size_t>(length_max)) {
    return TooLong(field, fmt::format("at least {}", least), length_max);
  }
  auto ids = model.tokenizer().Encode(text, {.add_special_tokens = add_special_tokens});
  if (!ids.ok()) return FieldError(field, "{}", ToStd(ids.status().message()));
  for (const int32_t id : *ids) {
    if (id >= model.vocab_size()) {
      return FieldError(field, "the tokenizer gives id {}, but the model has only {} ids", id,
                        model.vocab_size());
    }
  }
  return ids;
}

absl::StatusOr<RequestPlan> PlanRequest(const v1::GenerateRequest& request,
                                        const ServedModel& model, const ModelInfo& info,
                                        uint64_t drawn_seed) {
  SY_RETURN_IF_ERROR(model.CheckName(request.model()));
  SY_RETURN_IF_ERROR(CheckLimits(request, model.vocab_size()));

  RequestPlan plan;
  plan.echo = request.echo();
  plan.echo_only = request.echo() && request.has_max_tokens() && request.max_tokens() == 0;
  plan.skip_special = !request.has_skip_special_tokens() || request.skip_special_tokens();
  plan.include_stop = request.include_stop_str_in_output();
  plan.stops.assign(request.stop().begin(), request.stop().end());
  plan.top_logprobs = request.has_top_logprobs() ? request.top_logprobs() : -1;
  plan.return_token_ids = request.return_token_ids();
  plan.return_routed_experts = request.return_routed_experts();
  SY_RETURN_IF_ERROR(PlanPrompt(request, model, info.max_model_len, &plan));

  internal::v1::Submit& submit = plan.submit;
  PlanSampling(request.sampling(), model.defaults(), drawn_seed, submit.mutable_sampling());
  const int room = info.max_model_len - submit.prompt_size();
  const int wanted = request.has_max_tokens() ? request.max_tokens()
                                              : model.defaults().max_new_tokens.value_or(room);
  submit.set_max_tokens(std::clamp(wanted, 1, room));
  if (request.min_tokens() > submit.max_tokens()) {
    return FieldError("min_tokens", "{} is more than the {} tokens that the output may have",
                      request.min_tokens(), submit.max_tokens());
  }
  submit.set_min_tokens(request.min_tokens());
  submit.set_n(std::max(1, request.n()));
  *submit.mutable_stop_token_ids() = request.stop_token_ids();
  submit.set_top_logprobs(plan.top_logprobs);
  submit.set_prompt_logprobs(plan.echo && plan.top_logprobs >= 0);
  submit.set_return_routed_experts(plan.return_routed_experts);
  submit.set_priority(request.priority());
  submit.set_cache_salt(request.cache_salt());
  return plan;
}

}  // namespace switchyard::gateway
