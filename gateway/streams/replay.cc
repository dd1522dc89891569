#include "gateway/streams/replay.h"

#include <algorithm>

namespace switchyard::gateway {

using internal::v1::Token;

Replay::Replay(int choices, int routing_width)
    : routing_width_(std::max(1, routing_width)), choices_(static_cast<size_t>(choices)) {}

Replay::Verdict Replay::Judge(const Token& token) const {
  if (token.attempt() != attempt_) return Verdict::kStale;
  const Choice& choice = choices_[static_cast<size_t>(token.choice())];
  if (choice.ended) return Verdict::kOver;
  const auto had = static_cast<int>(choice.tokens.size());
  if (token.index() < 0 || token.index() == had) return Verdict::kNews;
  return token.index() < had ? Verdict::kStale : Verdict::kGap;
}

void Replay::Take(const Token& token) {
  Choice& choice = choices_[static_cast<size_t>(token.choice())];
  if (token.index() >= 0) {
    choice.tokens.push_back(token.id());
    fruitless_ = 0;
  }
  if (token.routing_experts_size() > 0) {
    choice.routing_until =
        token.routing_first_position() + token.routing_experts_size() / routing_width_;
  }
  if (const int n = token.prompt_logprobs_size(); n > 0) {
    prompt_logprobs_until_ = token.prompt_logprobs(n - 1).position();
  }
  if (token.finish() != Token::NONE) choice.ended = true;
}

bool Replay::all_ended() const {
  return std::all_of(choices_.begin(), choices_.end(), [](const Choice& c) { return c.ended; });
}

bool Replay::has_tokens() const {
  return std::any_of(choices_.begin(), choices_.end(),
                     [](const Choice& c) { return !c.tokens.empty(); });
}

void Replay::BeginAttempt() {
  ++attempt_;
  ++fruitless_;
}

void Replay::Fill(internal::v1::Submit* submit) const {
  submit->set_attempt(attempt_);
  submit->clear_choices();
  if (attempt_ == 0) return;
  submit->set_prompt_logprobs_until(prompt_logprobs_until_);
  for (const Choice& choice : choices_) {
    internal::v1::ChoiceSoFar* out = submit->add_choices();
    out->mutable_tokens()->Assign(choice.tokens.begin(), choice.tokens.end());
    out->set_ended(choice.ended);
    out->set_routing_until(choice.routing_until);
  }
}

}  // namespace switchyard::gateway
