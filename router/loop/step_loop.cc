#include "router/loop/step_loop.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "router/loop/request_check.h"
#include "services/base/check.h"
#include "services/base/status.h"

namespace switchyard::router {
namespace {

// All groups that see everything have blocks for as many tokens; so have those that do not.
SequenceView ViewOfRunning(const Sequence& s, std::span<const int> windows) {
  SequenceView view{.priority = s.request.spec.priority,
                    .arrival = s.arrival,
                    .known = s.known(),
                    .computed = s.computed,
                    .own_blocks = s.tables->own_blocks(),
                    .last_step = s.last_step,
                    .drafts = static_cast<int64_t>(s.drafts.size()),
                    .all_logits = s.scores_prompt()};
  for (int g = 0; g < s.tables->groups(); ++g) {
    const int window = windows[static_cast<size_t>(g)];
    const BlockTable& table = s.tables->group(g);
    (window == 0 ? view.full_blocks : view.window_blocks) = table.blocks();
    view.later_blocks += LaterBlocks(window, table.first(), table.blocks(), view.known);
  }
  return view;
}

}  // namespace

StepLoop::StepLoop(const EngineOptions& options, ModelRunner& runner, EngineObserver& observer,
                   Outbox& outbox)
    : options_(options),
      runner_(runner),
      observer_(observer),
      outbox_(outbox),
      pool_(options.kv_blocks),
      sampler_(runner.spec().vocab),
      layout_(KvLayoutOf(runner.spec())) {
  snapshot_.full_groups = layout_.groups_that_see_all();
  snapshot_.window_groups = layout_.groups() - snapshot_.full_groups;
  batch_.block_tables.resize(layout_.windows.size());
}

void StepLoop::Add(EngineRequest spec, absl::Time now) {
  auto owned = std::make_unique<Request>();
  Request& request = *owned;
  request.max_len = MaxLength(spec, options_);
  request.stop_ids = spec.stop_token_ids;
  if (!spec.sampling.ignore_eos) {
    for (int id : runner_.spec().eos_ids) request.stop_ids.push_back(id);
  }
  std::sort(request.stop_ids.begin(), request.stop_ids.end());
  request.submitted = now;
  request.spec = std::move(spec);
  const bool continued = !request.spec.choices.empty();
  uint64_t& arrival = continued ? next_continued_ : next_arrival_;
  for (int i = 0; i < request.spec.n; ++i) {
    request.choices.push_back(std::make_unique<Sequence>(request, i, arrival++));
    Sequence& s = *request.choices.back();
    if (continued) Continue(s, now);
    if (s.state == Sequence::State::kEnded) continue;
    if (request.open++ > 0 && request.forks()) {
      s.state = Sequence::State::kHeld;
      ++request.held;
    } else {
      waiting_.Insert(s);
    }
  }
  next_deadline_ = std::min(next_deadline_, request.spec.deadline);
  ++unstarted_;
  const bool fresh = requests_.emplace(request.key(), std::move(owned)).second;
  SY_CHECK(fresh);
}

// As after a preemption: what another router made of it is computed again, and nothing told twice.
void StepLoop::Continue(Sequence& s, absl::Time now) {
  const EngineRequest& spec = s.request.spec;
  const ChoiceSoFar& so_far = spec.choices[static_cast<size_t>(s.choice)];
  if (so_far.ended) s.state = Sequence::State::kEnded;
  if (!so_far.tokens.empty()) {
    s.tokens = spec.prompt;
    s.tokens.insert(s.tokens.end(), so_far.tokens.begin(), so_far.tokens.end());
  }
  s.traced = s.trace_sent = so_far.routing_until;
  s.scored = spec.prompt_logprobs_until;
  s.last_token = now;
}

void StepLoop::Cancel(const RequestKey& key) {
  if (const auto at = requests_.find(key); at != requests_.end()) CancelRequest(*at->second);
  Sweep();
}

void StepLoop::CancelChoice(const RequestKey& key, int choice) {
  if (const auto at = requests_.find(key); at != requests_.end()) {
    CancelSequence(*at->second->choices[static_cast<size_t>(choice)]);
  }
  Sweep();
}

void StepLoop::CancelSink(const TokenSink* sink) {
  for (const auto& [key, request] : requests_) {
    if (key.sink == sink) CancelRequest(*request);
  }
  Sweep();
}

void StepLoop::Displace(const RequestKey& key, const absl::Status& why) {
  const auto at = requests_.find(key);
  if (at == requests_.end() || at->second->started || at->second->open == 0) return;
  observer_.OnDisplaced(why);
  for (const auto& s : at->second->choices) Fail(*s, why);
  Sweep();
}

void StepLoop::CancelEverything() {
  for (const auto& [key, request] : requests_) CancelRequest(*request);
  Sweep();
}

void StepLoop::Expire(absl::Time now) {
  if (now < next_deadline_) return;
  next_deadline_ = absl::InfiniteFuture();
  for (const auto& [key, request] : requests_) {
    if (request->open == 0) continue;
    if (now < request->spec.deadline) {
      next_deadline_ = std::min(next_deadline_, request->spec.deadline);
      continue;
    }
    for (const auto& s : request->choices) {
      Fail(*s, DeadlineExceeded(
                   "request \"{}\", choice {}: its deadline passed after {} of {} tokens",
                   request->spec.trace_id, s->choice, s->outputs(), request->spec.max_tokens));
    }
  }
  Sweep();
}

bool StepLoop::BeginStep(absl::Time now) {
  SY_CHECK(!in_flight_);
  Expire(now);
  if (idle()) return false;
  BatchPlan plan;
  std::vector<Sequence*> before;  // what the plan's indices mean
  // Sequences that share blocks free them together; how many is known when they have.
  do {
    TakeSnapshot();
    plan = PlanBatch(snapshot_, {.max_batch_tokens = options_.max_batch_tokens,
                                 .max_running = options_.max_running,
                                 .max_logit_rows = options_.max_logit_rows,
                                 .step_target_ms = options_.step_target_ms,
                                 .cost = cost_.cost()});
    before = running_;
    for (int index : plan.preempt) Preempt(*before[index]);
    for (int index : plan.admit) Admit(*candidates_[index], now);
    for (int index : plan.admit) {
      Sequence& s = *candidates_[index];
      s.tables->Admit(s.computed, s.known());
    }
  } while (plan.work.empty() && !plan.preempt.empty());
  SY_CHECK(!plan.work.empty());  // the policy's promise: something always advances

  ++steps_;
  batch_.Clear();
  batch_.deadline = absl::InfinitePast();
  batch_.priority = std::numeric_limits<int>::min();
  slices_.clear();
  shape_ = {};
  for (const BatchPlan::Work& work : plan.work) {
    AppendRows(work.admitted_now ? *candidates_[work.index] : *before[work.index], work.tokens);
  }
  batch_.micro_batches = micro_batches_.Choose(batch_.rows(), static_cast<int64_t>(slices_.size()));
  in_flight_ = true;
  step_began_ = now;
  runner_.Start(batch_);
  return true;
}

void StepLoop::TakeSnapshot() {
  snapshot_.running.clear(), snapshot_.waiting.clear(), candidates_.clear();
  snapshot_.free_blocks = pool_.free();
  for (Sequence* s : running_) {
    GuessNext(*s);
    snapshot_.running.push_back(ViewOfRunning(*s, layout_.windows));
  }
  // No more than a step has rows and places for: looking for a prefix takes time.
  int64_t rows = 0;
  waiting_.Visit([&](Sequence& s) {
    if (rows >= options_.max_batch_tokens) return int64_t{-1};
    if (static_cast<int>(candidates_.size()) == options_.max_running) return int64_t{-1};
    candidates_.push_back(&s);
    snapshot_.waiting.push_back(ViewOfWaiting(s));
    const int64_t missing = s.known() - snapshot_.waiting.back().computed;
    rows += missing;
    return missing;
  });
}

void StepLoop::GuessNext(Sequence& s) {
  s.drafts.clear();
  // The last token of all is never computed; routing is told of rows that count, once.
  const int64_t most = std::min<int64_t>(s.draft_most, s.request.max_len - 1 - s.known());
  if (most <= 0 || s.known() - s.computed != 1 || s.request.spec.return_routed_experts) return;
  s.drafter->Draft({.tokens = s.tokens, .most = static_cast<int>(most)}, &s.drafts);
}

SequenceView StepLoop::ViewOfWaiting(Sequence& s) {
  const Prefix found = FindPrefix(s);
  SequenceView view{.priority = s.request.spec.priority,
                    .arrival = s.arrival,
                    .known = s.known(),
                    .computed = found.blocks * kBlockTokens,
                    .shared_blocks = found.used,
                    .last_step = s.last_step,
                    .all_logits = s.scores_prompt()};
  for (const int window : layout_.windows) {
    const int64_t end = BlocksFor(AdmittedTokens(window, view.computed, view.known));
    (window == 0 ? view.full_blocks : view.window_blocks) = end;
    const int64_t first = FirstBlockSeen(view.computed, window);
    view.admit_blocks += end - first;
    view.later_blocks += LaterBlocks(window, first, end, view.known);
  }
  return view;
}

void StepLoop::Admit(Sequence& s, absl::Time now) {
  Activate(s);
  SharePrefix(s);
  if (s.request.started) return;
  NoteStarted(s.request);
  s.request.cached_tokens = static_cast<int>(s.computed);
  ++started_;
  observer_.OnQueued(now - s.request.submitted);
}

void StepLoop::NoteStarted(Request& request) {
  request.started = true;
  --unstarted_;
  started_keys_.push_back(request.key());
}

void StepLoop::Activate(Sequence& s) {
  waiting_.Erase(s);
  waiting_.NoteTurn(s.request.spec.fair_key);
  running_.push_back(&s);
  s.state = Sequence::State::kRunning;
  if (s.tables) return;
  const EngineRequest& spec = s.request.spec;
  s.tokens.reserve(s.request.max_len);
  if (s.tokens.empty()) s.tokens = spec.prompt;
  s.history.emplace(spec.sampling, spec.prompt);
  for (size_t i = spec.prompt.size(); i < s.tokens.size(); ++i) s.history->AddOutput(s.tokens[i]);
  s.tables.emplace(pool_, layout_.windows, s.request.max_len - 1);
  if (options_.max_drafts > 0) s.drafter = options_.make_drafter();
  s.draft_most = options_.max_drafts;
}

void StepLoop::Preempt(Sequence& s) {
  std::erase(running_, &s);
  s.tables->Clear();
  s.drafts.clear();
  s.computed = s.published = 0;
  s.sound = Sequence::kAllSound;
  s.state = Sequence::State::kWaiting;
  waiting_.Insert(s);
  observer_.OnPreempted();
}

void StepLoop::AppendRows(Sequence& s, int64_t rows) {
  const Request& request = s.request;
  const int64_t drafts = std::max<int64_t>(0, s.computed + rows - s.known());
  SY_CHECK(drafts <= static_cast<int64_t>(s.drafts.size()));
  s.tables->Grow(s.computed + rows);
  shape_.Add(s.computed, rows);
  s.last_step = steps_;
  Slice slice{.sequence = &s,
              .first_row = batch_.rows(),
              .rows = rows,
              .first_logit = static_cast<int64_t>(batch_.logit_rows.size()),
              .first_trace = static_cast<int64_t>(batch_.trace_rows.size()),
              .first_scored = std::max(s.scored, s.computed),
              .drafts = drafts};
  const bool scores = s.scores_prompt();
  for (int64_t p = s.computed; p < s.computed + rows; ++p) {
    const auto row = static_cast<int32_t>(batch_.rows());
    batch_.tokens.push_back(p < s.known() ? s.tokens[p] : s.drafts[p - s.known()]);
    batch_.positions.push_back(static_cast<int32_t>(p));
    for (int g = 0; g < layout_.groups(); ++g) {
      batch_.block_tables[static_cast<size_t>(g)].push_back(s.tables->group(g).data());
    }
    const bool scored = scores && p >= s.scored && p < request.prompt_len() - 1;
    if (scored || p >= s.known() - 1) batch_.logit_rows.push_back(row);
    if (request.spec.return_routed_experts && p >= s.traced) batch_.trace_rows.push_back(row);
  }
  slice.traces = static_cast<int64_t>(batch_.trace_rows.size()) - slice.first_trace;
  slices_.push_back(slice);
  batch_.priority = std::max(batch_.priority, request.spec.priority);
  // The step is worth its while as long as one of its sequences is.
  batch_.deadline = std::max(batch_.deadline, request.spec.deadline);
}

void StepLoop::CancelRequest(Request& request) {
  for (const auto& s : request.choices) CancelSequence(*s);
}

void StepLoop::CancelSequence(Sequence& s) {
  if (s.state == Sequence::State::kEnded) return;
  TokenEvent event = EventOf(s);
  event.finish = Finish::kCancelled;
  End(s, std::move(event));
}

bool StepLoop::step_is_wasted() const {
  return in_flight_ && std::all_of(slices_.begin(), slices_.end(), [](const Slice& slice) {
           return slice.sequence->state == Sequence::State::kEnded;
         });
}

void StepLoop::Fail(Sequence& s, absl::Status why) {
  if (s.state == Sequence::State::kEnded) return;
  TokenEvent event = EventOf(s);
  event.finish = Finish::kError;
  event.retry_after_ms = RetryAfterMs(why);
  event.error = std::move(why);
  End(s, std::move(event));
}

void StepLoop::End(Sequence& s, TokenEvent event) {
  Request& request = s.request;
  observer_.OnFinished(event.finish, s.choice == 0 ? static_cast<int>(request.prompt_len()) : 0,
                       static_cast<int>(s.outputs() - s.outputs_before()));
  outbox_.Add(request.spec.sink, std::move(event));
  if (s.degraded != LostExperts::kFail) ++degraded_choices_;
  const bool led = s.state != Sequence::State::kHeld;
  if (!led) --request.held;
  if (s.state == Sequence::State::kWaiting) waiting_.Erase(s);
  s.state = Sequence::State::kEnded;
  if (--request.open > 0) {
    if (led) Promote(request);
    return;
  }
  to_sweep_.push_back(&request);
  if (!request.started) NoteStarted(request);
}

TokenEvent StepLoop::EventOf(const Sequence& s) const {
  TokenEvent event;
  event.request = s.request.spec.request;
  event.attempt = s.request.spec.attempt;
  event.choice = s.choice;
  event.degraded = s.degraded;
  return event;
}

void StepLoop::Sweep() {
  if (in_flight_) return;
  std::erase_if(running_, [](Sequence* s) {
    if (s->state != Sequence::State::kEnded) return false;
    s->tables->Clear();
    return true;
  });
  for (Request* request : to_sweep_) {
    ended_.push_back(request->key());
    requests_.erase(request->key());
  }
  to_sweep_.clear();
}

std::vector<RequestKey> StepLoop::TakeEnded() { return std::exchange(ended_, {}); }
std::vector<RequestKey> StepLoop::TakeStarted() { return std::exchange(started_keys_, {}); }

}  // namespace switchyard::router
