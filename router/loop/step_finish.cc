// The second half of a step: what the runner computed becomes tokens.
#include <algorithm>
#include <iterator>
#include <utility>

#include "router/loop/step_loop.h"
#include "services/base/check.h"
#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::router {
namespace {

// What one event carries beside its token, so that the messages of a stream stay small: some 200 KB
// of each.
constexpr int64_t kEventRoutes = 32768;
constexpr int64_t kEventScores = 16384;

// What a generated token counts in the shares of clients, where one of a prompt counts 1: it reads
// the weights with less company.
constexpr int64_t kDecodeCost = 2;

bool IsLost(const StepResult& result, int64_t row) {
  return row < static_cast<int64_t>(result.lost.size()) && result.lost[row] != 0;
}

template <typename T>
void MoveFront(int64_t count, std::vector<T>* from, std::vector<T>* to) {
  if (count == static_cast<int64_t>(from->size())) {
    *to = std::exchange(*from, {});
    return;
  }
  const auto end = from->begin() + count;
  to->assign(std::make_move_iterator(from->begin()), std::make_move_iterator(end));
  from->erase(from->begin(), end);
}

}  // namespace

void StepLoop::FinishStep(absl::Time now) {
  SY_CHECK(in_flight_);
  const StepResult& result = runner_.result();
  int64_t prefill_rows = 0;
  for (const Slice& slice : slices_) {
    const bool prefill = slice.rows - slice.drafts > 1 || slice.sequence->outputs() == 0;
    if (prefill) prefill_rows += slice.rows;
    waiting_.Charge(slice.sequence->request.spec.fair_key,
                    prefill ? slice.rows : kDecodeCost + slice.drafts);
    FinishSlice(slice, result, now);
  }
  in_flight_ = false;
  MeasureStep(now - step_began_);
  Sweep();
  observer_.OnStep({.rows = batch_.rows(),
                    .prefill_rows = prefill_rows,
                    .sequences = static_cast<int>(slices_.size()),
                    .micro_batches = batch_.micro_batches,
                    .took = now - step_began_,
                    .waited = result.waited});
}

void StepLoop::MeasureStep(absl::Duration took) {
  const double ms = absl::ToDoubleMilliseconds(took);
  micro_batches_.Observe({.rows = batch_.rows(),
                          .micro_batches = batch_.micro_batches,
                          .took_ms = ms,
                          .waited_ms = absl::ToDoubleMilliseconds(runner_.result().waited),
                          .expected_ms = cost_.cost().Of(shape_)});
  if (batch_.micro_batches == 1) cost_.Observe(shape_, ms);
}

void StepLoop::FinishSlice(const Slice& slice, const StepResult& result, absl::Time now) {
  Sequence& s = *slice.sequence;
  if (s.state == Sequence::State::kEnded) return;  // cancelled while its rows were computed
  const std::string& trace_id = s.request.spec.trace_id;
  const int64_t known_rows = slice.rows - slice.drafts;
  for (int64_t row = slice.first_row; row < slice.first_row + known_rows; ++row) {
    if (!IsLost(result, row)) continue;
    log::Warning("request \"{}\", choice {}: a row of position {} was lost", trace_id, s.choice,
                 batch_.positions[row]);
    return Fail(
        s, Unavailable("request \"{}\", choice {}: an expert's row of position {} was lost with "
                       "its worker",
                       trace_id, s.choice, batch_.positions[row]));
  }
  for (int64_t i = 0; i < known_rows; ++i) {
    NoteDegraded(s, s.computed + i, result, slice.first_row + i);
  }
  TakeTraces(slice, result);
  const absl::StatusOr<int64_t> scored = ScorePrompt(slice, result);
  if (!scored.ok()) return Fail(s, scored.status());
  s.computed += known_rows;
  SettleBlocks(s);
  if (s.computed >= s.request.prompt_len() && s.outputs() > 0) Release(s.request);
  if (s.computed < s.known()) {
    TokenEvent event = SendComputed(s);
    const bool empty = event.routed_experts.empty() && event.prompt_logprobs.empty();
    if (!empty) outbox_.Add(s.request.spec.sink, std::move(event));
    return;
  }
  const int64_t vocab = runner_.spec().vocab;
  const float* first = result.logits + (slice.first_logit + *scored) * vocab;
  const std::span<const float> logits(first, static_cast<size_t>(vocab));
  if (s.outputs() == 0) Fork(s, logits, now);
  SampleNext(s, logits, now);
  if (slice.drafts > 0) AcceptDrafts(slice, result, first + vocab, now);
}

void StepLoop::NoteDegraded(Sequence& s, int64_t position, const StepResult& result, int64_t row) {
  if (row >= static_cast<int64_t>(result.degraded.size()) || result.degraded[row] == 0) return;
  const LostExperts how{result.degraded[row]};
  s.sound = std::min(s.sound, position);
  if (s.degraded == LostExperts::kFail) s.degraded = how;
  ++degraded_rows_;
  observer_.OnDegraded(how);
}

void StepLoop::AcceptDrafts(const Slice& slice, const StepResult& result, const float* logits,
                            absl::Time now) {
  Sequence& s = *slice.sequence;
  const auto vocab = static_cast<size_t>(runner_.spec().vocab);
  const int64_t first_row = slice.first_row + slice.rows - slice.drafts;
  int64_t accepted = 0;
  for (; accepted < slice.drafts; ++accepted, logits += vocab) {
    if (s.state == Sequence::State::kEnded || s.tokens.back() != s.drafts[accepted]) break;
    if (IsLost(result, first_row + accepted)) break;
    NoteDegraded(s, s.computed, result, first_row + accepted);
    ++s.computed;
    SettleBlocks(s);
    SampleNext(s, {logits, vocab}, now);
  }
  observer_.OnDrafts(slice.drafts, accepted);
  s.draft_most = accepted == slice.drafts ? std::min(options_.max_drafts, 2 * s.draft_most)
                                          : std::max(1, static_cast<int>(accepted));
}

void StepLoop::TakeTraces(const Slice& slice, const StepResult& result) {
  if (slice.traces == 0) return;
  Sequence& s = *slice.sequence;
  const auto all = static_cast<int64_t>(batch_.trace_rows.size());
  const int64_t width = static_cast<int64_t>(result.routed_experts.size()) / all;
  SY_CHECK(static_cast<int64_t>(result.routed_experts.size()) == width * all &&
           result.routed_weights.size() == result.routed_experts.size());
  const int64_t first = slice.first_trace * width, last = first + slice.traces * width;
  s.routed_experts.insert(s.routed_experts.end(), result.routed_experts.begin() + first,
                          result.routed_experts.begin() + last);
  s.routed_weights.insert(s.routed_weights.end(), result.routed_weights.begin() + first,
                          result.routed_weights.begin() + last);
  s.traced += slice.traces;
}

absl::StatusOr<int64_t> StepLoop::ScorePrompt(const Slice& slice, const StepResult& result) {
  Sequence& s = *slice.sequence;
  if (!s.scores_prompt()) return 0;
  const auto vocab = static_cast<size_t>(runner_.spec().vocab);
  const int64_t last = std::min(s.computed + slice.rows, s.request.prompt_len() - 1);
  const float* logits = result.logits + slice.first_logit * static_cast<int64_t>(vocab);
  int64_t used = 0;
  for (int64_t p = slice.first_scored; p < last; ++p, ++used, logits += vocab) {
    absl::StatusOr<SampledToken> score =
        sampler_.Score({logits, vocab}, s.tokens[p + 1], s.request.spec.top_logprobs);
    if (!score.ok()) {
      return Annotate(score.status(), fmt::format("request \"{}\", choice {}, prompt position {}",
                                                  s.request.spec.trace_id, s.choice, p + 1));
    }
    s.prompt_logprobs.push_back({.position = static_cast<int32_t>(p + 1),
                                 .logprob = score->logprob,
                                 .top = std::move(score->top)});
    s.scored = p + 1;
  }
  return used;
}

void StepLoop::TakeComputed(Sequence& s, TokenEvent* event) {
  event->routing_first_position = static_cast<int>(s.trace_sent);
  if (const int64_t positions = s.traced - s.trace_sent; positions > 0) {
    const int64_t width = static_cast<int64_t>(s.routed_experts.size()) / positions;
    const int64_t some = std::min(positions, std::max<int64_t>(1, kEventRoutes / (width + 1)));
    MoveFront(some * width, &s.routed_experts, &event->routed_experts);
    MoveFront(some * width, &s.routed_weights, &event->routed_weights);
    s.trace_sent += some;
  }
  const int64_t entries = 1 + std::max(0, s.request.spec.top_logprobs);
  MoveFront(std::min(static_cast<int64_t>(s.prompt_logprobs.size()),
                     std::max<int64_t>(1, kEventScores / entries)),
            &s.prompt_logprobs, &event->prompt_logprobs);
}

TokenEvent StepLoop::SendComputed(Sequence& s) {
  while (true) {
    TokenEvent event = EventOf(s);
    TakeComputed(s, &event);
    if (s.traced == s.trace_sent && s.prompt_logprobs.empty()) return event;
    outbox_.Add(s.request.spec.sink, std::move(event));
  }
}

void StepLoop::SampleNext(Sequence& s, std::span<const float> logits, absl::Time now) {
  const Request& request = s.request;
  const EngineRequest& spec = request.spec;
  const auto index = static_cast<int>(s.outputs());
  std::span<const int32_t> banned;
  if (index < spec.min_tokens) banned = request.stop_ids;
  absl::StatusOr<SampledToken> token = sampler_.Sample({.logits = logits,
                                                        .params = spec.sampling,
                                                        .history = *s.history,
                                                        .banned = banned,
                                                        .choice = s.choice,
                                                        .position = s.known(),
                                                        .top_logprobs = spec.top_logprobs});
  if (!token.ok()) {
    const std::string who =
        fmt::format("request \"{}\", choice {}, position {}", spec.trace_id, s.choice, s.known());
    log::Warning("{}: {}", who, ToStd(token.status().message()));
    return Fail(s, Annotate(token.status(), who));
  }
  s.tokens.push_back(token->id);
  s.history->AddOutput(token->id);
  TokenEvent event = SendComputed(s);
  event.index = index;
  event.id = token->id;
  event.logprob = token->logprob;
  event.top = std::move(token->top);
  if (index == 0) {
    event.cached_tokens = request.cached_tokens;
    observer_.OnFirstToken(now - request.submitted);
  } else {
    observer_.OnToken(now - s.last_token);
  }
  s.last_token = now;
  if (std::binary_search(request.stop_ids.begin(), request.stop_ids.end(), token->id)) {
    event.finish = Finish::kStop;
  } else if (s.known() >= request.max_len) {
    event.finish = Finish::kLength;
  }
  if (event.finish != Finish::kNone) return End(s, std::move(event));
  outbox_.Add(spec.sink, std::move(event));
}

}  // namespace switchyard::router
