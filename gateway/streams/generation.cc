#include "gateway/streams/generation.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "services/base/check.h"
#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::gateway {

using internal::v1::Token;

const char* NameOf(v1::Degraded how) {
  if (how == v1::DEGRADED_RENORMALISE) return "renormalise";
  return how == v1::DEGRADED_NO ? "" : "next-best";
}

void OpenGenerations::Add(const std::shared_ptr<Generation>& generation) {
  absl::MutexLock lock(&mutex_);
  open_[generation.get()] = generation;
}

void OpenGenerations::Remove(const Generation* generation) {
  absl::MutexLock lock(&mutex_);
  open_.erase(generation);
  if (open_.empty()) emptied_.SignalAll();
}

std::vector<std::shared_ptr<Generation>> OpenGenerations::All() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<Generation>> out;
  for (const auto& [key, weak] : open_) {
    if (auto generation = weak.lock()) out.push_back(std::move(generation));
  }
  return out;
}

int OpenGenerations::size() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(open_.size());
}

bool OpenGenerations::WaitUntilNone(absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  return emptied_.Await(&mutex_, timeout, [this] {
    mutex_.AssertHeld();
    return open_.empty();
  });
}

namespace {

const char* NameOf(Loss::Reason reason) {
  switch (reason) {
    case Loss::Reason::kBroken:
      return "broken";
    case Loss::Reason::kEnded:
      return "ended";
    case Loss::Reason::kSilent:
      return "silent";
    case Loss::Reason::kNoRouter:
      return "no router";
  }
  return "unknown";
}

}  // namespace

Generation::ChoiceState::ChoiceState(const ServedModel& model, const RequestPlan& plan)
    : split(model.tokenizer(), plan.reasoning, plan.starts_in_reasoning, plan.skip_special),
      reasoning_stop(plan.stops, plan.include_stop),
      content_stop(plan.stops, plan.include_stop) {}

Generation::Generation(const ServedModel& model, RouterClient& routers,
                       GenerationObserver* observer, GenerationOptions options,
                       std::shared_ptr<OpenGenerations> open, RequestPlan plan,
                       const ModelInfo& info, const CallContext& context,
                       std::shared_ptr<ChunkSink> sink)
    : model_(model),
      routers_(routers),
      observer_(observer),
      options_(options),
      open_(std::move(open)),
      chunk_head_id_(context.request_id),
      start_(SteadyNow()),
      deadline_(context.deadline),
      plan_(std::move(plan)),
      moe_layers_(info.moe_layers),
      moe_top_k_(info.top_k),
      sink_(std::move(sink)),
      replay_(plan_.submit.n(), static_cast<int>(info.moe_layers.size()) * info.top_k) {
  choices_.reserve(plan_.submit.n());
  for (int i = 0; i < plan_.submit.n(); ++i) choices_.emplace_back(model_, plan_);
  chunk_.set_request_id(chunk_head_id_);
  chunk_.set_model(model_.name());
  chunk_.set_created(absl::ToUnixSeconds(absl::Now()));
  usage_.set_prompt_tokens(plan_.submit.prompt_size());
  have_prompt_logprobs_ = !plan_.submit.prompt_logprobs();
}

absl::Status Generation::Submit() {
  open_->Add(shared_from_this());
  const absl::Status sent = Send(absl::InfinitePast());
  absl::MutexLock lock(&mutex_);
  if (sent.ok()) {
    if (observer_ != nullptr) observer_->OnStart(plan_.submit.prompt_size());
  } else {
    open_->Remove(this);
    done_ = true;
    sink_ = nullptr;
  }
  return sent;
}

absl::Status Generation::Send(absl::Time not_before) {
  internal::v1::Submit submit;
  SubmitTerms terms{.deadline = deadline_, .not_before = not_before};
  {
    absl::MutexLock lock(&mutex_);
    if (done_) return absl::OkStatus();
    submit = plan_.submit;
    replay_.Fill(&submit);
    terms.continued = replay_.attempt() > 0;
    terms.like = numerics_;
  }
  const uint32_t attempt = submit.attempt();
  // Tokens, and the loss of this router too, may come before this returns.
  SY_ASSIGN_OR_RETURN(const uint64_t handle,
                      routers_.Submit(std::move(submit), shared_from_this(), std::move(terms)));
  {
    absl::MutexLock lock(&mutex_);
    if (replay_.attempt() == attempt) handle_ = handle;
  }
  CancelAtRouterIfNeeded();
  return absl::OkStatus();
}

bool Generation::BeginAttempt(const absl::Status& why, const char* reason) {
  const absl::Time now = SteadyNow();
  const bool full = why.code() == absl::StatusCode::kResourceExhausted;
  const bool again =
      full ? now < lost_at_ + options_.router_wait : replay_.fruitless() < options_.resume_attempts;
  if (!again || now >= deadline_) {
    End(InTime(why), 0);
    return false;
  }
  replay_.BeginAttempt();
  handle_ = 0;
  cancel_choices_.clear();  // the next router is told that they have ended
  lost_at_ = std::min(lost_at_, now);
  if (observer_ != nullptr) observer_->OnResumed(reason);
  return true;
}

absl::Status Generation::InTime(const absl::Status& status) const {
  if (SteadyNow() < deadline_) return status;
  return DeadlineExceeded("request \"{}\": its deadline passed without a router; {}",
                          chunk_head_id_, ToStd(status.message()));
}

void Generation::Resume(const absl::Status& why, const char* reason, absl::Time not_before) {
  {
    absl::MutexLock lock(&mutex_);
    if (done_ || !BeginAttempt(why, reason)) return;
  }
  log::Debug("request \"{}\" goes on elsewhere: {}", chunk_head_id_, ToStd(why.message()));
  const absl::Status sent = Send(not_before);
  if (sent.ok()) return;
  absl::MutexLock lock(&mutex_);
  if (!done_) End(InTime(Unavailable("{}; {}", ToStd(why.message()), ToStd(sent.message()))), 0);
}

void Generation::Cancel() {
  std::shared_ptr<ChunkSink> dropped;  // let go without the lock
  {
    absl::MutexLock lock(&mutex_);
    if (done_) return;
    dropped = sink_;
    Close(absl::StatusCode::kCancelled);
  }
  CancelAtRouterIfNeeded();
}

bool Generation::Abort(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    if (done_) return false;
    End(status, 0);
  }
  CancelAtRouterIfNeeded();
  return true;
}

void Generation::OnBroken(const Loss& loss) {
  {
    absl::MutexLock lock(&mutex_);
    if (done_ || loss.attempt != replay_.attempt()) return;
    handle_ = 0;  // there is nothing to cancel
    if (loss.reason == Loss::Reason::kNoRouter) return End(InTime(loss.status), 0);
    if (replay_.has_tokens()) numerics_ = loss.numerics;
  }
  Resume(loss.status, NameOf(loss.reason), absl::InfinitePast());
}

void Generation::OnToken(const Token& token) {
  bool elsewhere = false;
  {
    absl::MutexLock lock(&mutex_);
    if (token.choice() < 0 || token.choice() >= static_cast<int>(choices_.size())) {
      return SY_BUG("token of a choice that was not asked for");
    }
    const Replay::Verdict verdict = replay_.Judge(token);
    elsewhere = verdict == Replay::Verdict::kNews && IsForElsewhere(token);
    if (verdict == Replay::Verdict::kNews && !elsewhere) replay_.Take(token);
    if (done_) return;
    if (verdict != Replay::Verdict::kNews) {
      PassOver(token, verdict);
    } else if (!elsewhere) {
      Handle(token);
    }
  }
  if (elsewhere) {
    const auto code = static_cast<absl::StatusCode>(token.code());
    return Resume(absl::Status(code, ToAbsl(token.message())), "refused",
                  SteadyNow() + absl::Milliseconds(token.retry_after_ms()));
  }
  CancelAtRouterIfNeeded();
}

bool Generation::IsForElsewhere(const Token& token) const {
  if (token.finish() != Token::ERROR) return false;
  // A stream that runs already is not turned away by a full queue: it waits.
  const auto full = static_cast<int>(absl::StatusCode::kResourceExhausted);
  return token.elsewhere() || (replay_.attempt() > 0 && token.code() == full);
}

void Generation::PassOver(const Token& token, Replay::Verdict verdict) {
  if (verdict == Replay::Verdict::kStale) {
    if (observer_ != nullptr && token.index() >= 0) observer_->OnStaleToken();
  } else if (verdict == Replay::Verdict::kGap) {
    End(Internal("request \"{}\", choice {}: token {} came before those ahead of it",
                 chunk_head_id_, token.choice(), token.index()),
        0);
  }
}

void Generation::Handle(const Token& token) {
  if (MustWaitForPromptLogprobs(token)) {
    held_.push_back(token);
    return;
  }
  if (have_prompt_logprobs_ && !held_.empty()) {
    const std::vector<Token> held = std::move(held_);
    held_.clear();
    for (const Token& late : held) {
      if (!done_) HandleChoice(late);
    }
    if (done_) return;
  }
  HandleChoice(token);
}

bool Generation::MustWaitForPromptLogprobs(const Token& token) {
  if (have_prompt_logprobs_) return false;
  if (token.choice() == 0) {
    prompt_logprobs_.insert(prompt_logprobs_.end(), token.prompt_logprobs().begin(),
                            token.prompt_logprobs().end());
    have_prompt_logprobs_ = token.index() >= 0 || token.finish() != Token::NONE;
  }
  return !have_prompt_logprobs_ && (token.index() >= 0 || token.routing_experts_size() > 0);
}

void Generation::HandleChoice(const Token& token) {
  ChoiceState& choice = choices_[token.choice()];
  if (choice.finished) return;
  if (token.cached_tokens() > 0) usage_.set_cached_tokens(token.cached_tokens());
  if (token.finish() == Token::ERROR || token.finish() == Token::CANCELLED)
    return FailChoice(token);
  NoteDegraded(token, choice);

  chunk_.clear_choices();
  v1::Choice* out = chunk_.add_choices();
  out->set_index(token.choice());
  out->set_degraded(choice.degraded);
  const bool routing = plan_.return_routed_experts && token.routing_experts_size() > 0;
  const bool first =
      !choice.announced && (token.index() >= 0 || token.finish() != Token::NONE || routing);
  if (first) {
    choice.announced = true;
    Announce(out);
  }
  if (plan_.return_routed_experts) AddRouting(token, out);
  if (token.index() >= 0) {
    NoteToken(choice);
    if (!plan_.echo_only) AddToken(token, choice, out);
  }
  Finish(token, choice, out);
  Emit(first || !out->text().empty() || !out->reasoning_content().empty() ||
       out->token_ids_size() > 0 || out->logprobs_size() > 0 || out->routed_experts_size() > 0 ||
       out->finish_reason() != v1::FINISH_REASON_UNSPECIFIED);
}

void Generation::NoteDegraded(const Token& token, ChoiceState& choice) {
  if (token.degraded() == Token::NO || choice.degraded != v1::DEGRADED_NO) return;
  choice.degraded =
      token.degraded() == Token::RENORMALISE ? v1::DEGRADED_RENORMALISE : v1::DEGRADED_NEXT_BEST;
  if (std::exchange(degraded_, true)) return;
  if (observer_ != nullptr) observer_->OnDegraded(choice.degraded);
}

void Generation::NoteToken(ChoiceState& choice) {
  if (observer_ == nullptr) return;
  const absl::Time now = SteadyNow();
  if (lost_at_ != absl::InfiniteFuture()) {
    observer_->OnStall(now - std::exchange(lost_at_, absl::InfiniteFuture()));
  }
  if (choice.tokens == 0) {
    if (usage_.completion_tokens() == 0) observer_->OnFirstToken(now - start_);
  } else {
    observer_->OnNextToken(now - choice.last_token);
  }
  choice.last_token = now;
}

// What the first chunk of a choice (and of all) holds beside its text.
void Generation::Announce(v1::Choice* out) {
  if (!sent_) {
    if (plan_.return_token_ids) *chunk_.mutable_prompt_token_ids() = plan_.submit.prompt();
    if (plan_.return_routed_experts) {
      chunk_.mutable_moe_layers()->Assign(moe_layers_.begin(), moe_layers_.end());
    }
  }
  if (!plan_.echo) return;
  out->set_text(plan_.echo_text);
  if (plan_.top_logprobs < 0) return;
  for (int i = 0; i < plan_.submit.prompt_size(); ++i) {
    v1::TokenLogprob* entry = out->add_logprobs();
    *entry = ToLogprob(plan_.submit.prompt(i), 0);
    entry->set_none(true);
  }
  for (const internal::v1::PromptLogprob& known : prompt_logprobs_) {
    if (known.position() < 0 || known.position() >= out->logprobs_size()) continue;
    v1::TokenLogprob* entry = out->mutable_logprobs(known.position());
    entry->set_none(false);
    entry->set_logprob(known.logprob());
    for (const auto& top : known.top()) *entry->add_top() = ToLogprob(top.id(), top.logprob());
  }
}

void Generation::AddRouting(const Token& token, v1::Choice* out) {
  const int row = static_cast<int>(moe_layers_.size()) * moe_top_k_;
  if (row == 0 || token.routing_experts_size() % row != 0 ||
      token.routing_weights_size() != token.routing_experts_size()) {
    if (token.routing_experts_size() > 0) SY_BUG("routing of a wrong size");
    return;
  }
  for (int at = 0; at < token.routing_experts_size(); at += row) {
    v1::RoutedExperts* routed = out->add_routed_experts();
    routed->set_position(token.routing_first_position() + at / row);
    const int32_t* experts = token.routing_experts().data() + at;
    const float* weights = token.routing_weights().data() + at;
    routed->mutable_experts()->Assign(experts, experts + row);
    routed->mutable_weights()->Assign(weights, weights + row);
  }
}

void Generation::AddToken(const Token& token, ChoiceState& choice, v1::Choice* out) {
  ++choice.tokens;
  usage_.set_completion_tokens(usage_.completion_tokens() + 1);
  if (choice.split.part() == ReasoningSplitter::Part::kReasoning) {
    usage_.set_reasoning_tokens(usage_.reasoning_tokens() + 1);
  }
  if (plan_.return_token_ids) out->add_token_ids(token.id());
  if (plan_.top_logprobs >= 0) {
    v1::TokenLogprob* entry = out->add_logprobs();
    *entry = ToLogprob(token.id(), token.logprob());
    for (const auto& top : token.top()) *entry->add_top() = ToLogprob(top.id(), top.logprob());
  }
  // The token that ended the text (end-of-sequence or a stop id) is not part of it.
  if (token.finish() == Token::STOP && !plan_.include_stop) return;
  AddText(choice.split.Push(token.id()), choice, out);
}

void Generation::AddText(const ReasoningDelta& delta, ChoiceState& choice, v1::Choice* out) {
  // Stop strings count from min_tokens on.
  const bool stops_count = choice.tokens > plan_.submit.min_tokens();
  const auto pass = [&](StopMatcher& stop, const std::string& text) {
    return stops_count ? stop.Push(text) : text;
  };
  if (!delta.reasoning.empty()) {
    out->mutable_reasoning_content()->append(pass(choice.reasoning_stop, delta.reasoning));
  }
  if (delta.content.empty() || choice.reasoning_stop.stopped()) return;
  if (!choice.reasoning_over) {
    choice.reasoning_over = true;
    out->mutable_reasoning_content()->append(choice.reasoning_stop.Flush());
  }
  out->mutable_text()->append(pass(choice.content_stop, delta.content));
}

void Generation::Finish(const Token& token, ChoiceState& choice, v1::Choice* out) {
  const auto matched = [&]() -> StopMatcher* {
    if (choice.reasoning_stop.stopped()) return &choice.reasoning_stop;
    return choice.content_stop.stopped() ? &choice.content_stop : nullptr;
  };
  const bool router_finished = token.finish() != Token::NONE;
  if (router_finished && matched() == nullptr) {
    AddText(choice.split.Flush(), choice, out);
    if (matched() == nullptr) {
      if (!choice.reasoning_over) {
        out->mutable_reasoning_content()->append(choice.reasoning_stop.Flush());
      }
      out->mutable_text()->append(choice.content_stop.Flush());
    }
  }
  if (const StopMatcher* stop = matched(); stop != nullptr) {
    out->set_finish_reason(v1::FINISH_REASON_STOP);
    out->set_stop_reason(std::string(stop->matched()));
    if (!replay_.ended(token.choice())) cancel_choices_.push_back(token.choice());
    replay_.End(token.choice());
  } else if (!router_finished) {
    return;
  } else if (token.finish() == Token::STOP && !plan_.echo_only) {
    out->set_finish_reason(v1::FINISH_REASON_STOP);
    const auto& ids = plan_.submit.stop_token_ids();
    if (std::find(ids.begin(), ids.end(), token.id()) != ids.end()) {
      out->set_stop_reason(std::to_string(token.id()));
    }
  } else {
    out->set_finish_reason(v1::FINISH_REASON_LENGTH);
  }
  choice.finished = true;
  ++finished_;
}

// A single choice fails as a request does, with a status of its own; one of several takes its error
// with it and the others go on. As long as nothing was sent the whole request can be refused.
void Generation::FailChoice(const Token& token) {
  const auto code = token.finish() == Token::CANCELLED ? absl::StatusCode::kCancelled
                    : token.code() == 0                ? absl::StatusCode::kInternal
                                        : static_cast<absl::StatusCode>(token.code());
  const absl::Status status(
      code, ToAbsl(token.message().empty() ? "the router ended the request" : token.message()));
  ChoiceState& choice = choices_[token.choice()];
  ++failed_;
  if (!sent_ || failed_ == static_cast<int>(choices_.size())) {
    return End(status, token.retry_after_ms());
  }
  choice.finished = true;
  choice.announced = true;
  ++finished_;
  chunk_.clear_choices();
  v1::Choice* out = chunk_.add_choices();
  out->set_index(token.choice());
  out->set_degraded(choice.degraded);
  out->set_finish_reason(v1::FINISH_REASON_ERROR);
  out->set_error(ToStd(status.message()).data(), status.message().size());
  Emit(true);
}

void Generation::Emit(bool worth_it) {
  const bool last = finished_ == static_cast<int>(choices_.size());
  if (last) *chunk_.mutable_usage() = usage_;
  if (worth_it) {
    const bool taken = sink_->OnChunk(chunk_);
    if (!sent_) {
      sent_ = true;
      chunk_.clear_prompt_token_ids();
      chunk_.clear_moe_layers();
    }
    if (!taken) return Close(absl::StatusCode::kCancelled);
  }
  if (last) End(absl::OkStatus(), 0);
}

void Generation::End(const absl::Status& status, int retry_after_ms) {
  sink_->OnEnd(status, retry_after_ms);
  Close(status.code());
}

void Generation::Close(absl::StatusCode code) {
  done_ = true;
  sink_ = nullptr;
  held_.clear();
  if (!replay_.all_ended() || !cancel_choices_.empty()) cancel_wanted_ = true;
  if (observer_ != nullptr) observer_->OnEnd(code, usage_.completion_tokens());
  open_->Remove(this);  // last: who waits for it may let the observer go
}

void Generation::CancelAtRouterIfNeeded() {
  uint64_t handle;
  bool whole;
  std::vector<int> choices;
  {
    absl::MutexLock lock(&mutex_);
    if (handle_ == 0) return;  // too early: Send does it
    handle = handle_;
    whole = std::exchange(cancel_wanted_, false);
    choices.swap(cancel_choices_);
  }
  if (whole) return routers_.Cancel(handle);
  for (const int choice : choices) routers_.CancelChoice(handle, choice);
}

v1::TokenLogprob Generation::ToLogprob(int32_t id, float logprob) const {
  v1::TokenLogprob out;
  out.set_id(id);
  const std::string_view bytes = model_.tokenizer().TokenBytes(id);
  out.set_token(bytes.data(), bytes.size());
  out.set_logprob(logprob);
  return out;
}

}  // namespace switchyard::gateway
