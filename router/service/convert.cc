#include "router/service/convert.h"
#include "services/base/clock.h"

#include <algorithm>

namespace switchyard::router {
namespace {

namespace pb = internal::v1;

SamplingParams FromProto(const pb::RouterSampling& in) {
  SamplingParams out;
  out.temperature = in.temperature();
  out.top_k = in.top_k();
  out.top_p = in.top_p();
  out.min_p = in.min_p();
  out.repetition_penalty = in.repetition_penalty();
  out.presence_penalty = in.presence_penalty();
  out.frequency_penalty = in.frequency_penalty();
  out.logit_bias.assign(in.logit_bias().begin(), in.logit_bias().end());
  // A map has no order of its own.
  std::sort(out.logit_bias.begin(), out.logit_bias.end());
  out.seed = in.seed();
  out.ignore_eos = in.ignore_eos();
  return out;
}

pb::Token::Finish ToProto(Finish finish) {
  switch (finish) {
    case Finish::kNone:
      return pb::Token::NONE;
    case Finish::kStop:
      return pb::Token::STOP;
    case Finish::kLength:
      return pb::Token::LENGTH;
    case Finish::kCancelled:
      return pb::Token::CANCELLED;
    case Finish::kError:
      return pb::Token::ERROR;
  }
  return pb::Token::ERROR;
}

pb::Token::Degraded ToProto(LostExperts how) {
  switch (how) {
    case LostExperts::kFail:
      return pb::Token::NO;
    case LostExperts::kRenormalise:
      return pb::Token::RENORMALISE;
    case LostExperts::kNextBest:
      return pb::Token::NEXT_BEST;
  }
  return pb::Token::NO;
}

template <typename Repeated>
void AddTop(const std::vector<TokenLogprob>& top, Repeated* out) {
  for (const TokenLogprob& entry : top) {
    pb::Logprob* logprob = out->Add();
    logprob->set_id(entry.id);
    logprob->set_logprob(entry.logprob);
  }
}

}  // namespace

EngineRequest FromProto(const pb::Submit& submit) {
  EngineRequest out;
  out.request = submit.request();
  out.attempt = submit.attempt();
  out.trace_id = submit.trace_id();
  out.prompt.assign(submit.prompt().begin(), submit.prompt().end());
  out.sampling = FromProto(submit.sampling());
  out.max_tokens = submit.max_tokens();
  out.min_tokens = submit.min_tokens();
  out.n = std::max(1, submit.n());
  out.stop_token_ids.assign(submit.stop_token_ids().begin(), submit.stop_token_ids().end());
  out.top_logprobs = submit.top_logprobs();
  out.prompt_logprobs = submit.prompt_logprobs();
  out.return_routed_experts = submit.return_routed_experts();
  out.priority = submit.priority();
  out.fair_key = submit.fair_key();
  out.cache_salt = submit.cache_salt();
  if (submit.deadline_left_us() > 0) {
    out.deadline = SteadyNow() + absl::Microseconds(submit.deadline_left_us());
  }
  for (const pb::ChoiceSoFar& choice : submit.choices()) {
    out.choices.push_back({.tokens = {choice.tokens().begin(), choice.tokens().end()},
                           .ended = choice.ended(),
                           .routing_until = choice.routing_until()});
  }
  out.prompt_logprobs_until = submit.prompt_logprobs_until();
  return out;
}

void ToProto(const TokenEvent& event, pb::Token* token) {
  token->set_request(event.request);
  token->set_attempt(event.attempt);
  token->set_choice(event.choice);
  token->set_index(event.index);
  token->set_id(event.id);
  token->set_logprob(event.logprob);
  AddTop(event.top, token->mutable_top());
  token->set_finish(ToProto(event.finish));
  if (!event.error.ok()) {
    token->set_code(static_cast<int>(event.error.code()));
    token->set_message(std::string(event.error.message()));
    token->set_retry_after_ms(event.retry_after_ms);
    token->set_elsewhere(event.elsewhere);
  }
  token->set_routing_first_position(event.routing_first_position);
  token->mutable_routing_experts()->Add(event.routed_experts.begin(), event.routed_experts.end());
  token->mutable_routing_weights()->Add(event.routed_weights.begin(), event.routed_weights.end());
  for (const PromptLogprob& entry : event.prompt_logprobs) {
    pb::PromptLogprob* out = token->add_prompt_logprobs();
    out->set_position(entry.position);
    out->set_logprob(entry.logprob);
    AddTop(entry.top, out->mutable_top());
  }
  token->set_cached_tokens(event.cached_tokens);
  token->set_degraded(ToProto(event.degraded));
}

}  // namespace switchyard::router
