// The router's heart: one thread that owns scheduler, block tables and KV, and runs steps.
// Everything else hands it work through a bounded queue and gets tokens through sinks. A step: take
// what arrived; admit and preempt; build a ragged batch of decode tokens and prefill chunks; run
// the model; sample; emit one message a sink.
//
// The tokens of a request are a function of the request alone: not of its batch, chunking,
// preemption or threads (counter-based sampling, per-row arithmetic).
//
// Thread-safety: Submit, Cancel, CancelChoice, CancelAll, Snapshot, Pulse and BeginDrain may be
// called by any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "router/draft/drafter.h"
#include "router/graph/model_runner.h"
#include "router/loop/request.h"

namespace switchyard::router {

struct EngineOptions {
  int max_model_len = 0;        // tokens of prompt and output; > 0
  int64_t kv_blocks = 0;        // of kBlockTokens tokens of a group of layers; > 0
  int max_batch_tokens = 2048;  // rows of a step; > 0
  int max_running = 256;        // sequences admitted at a time (a request has n of them); > 0
  // Requests waiting; one more is refused with RESOURCE_EXHAUSTED, or takes the place of the
  // youngest of the lowest priority, if its own is higher. A client of which some wait may not fill
  // the last eighth; requests that another router began may wait in twice the places. > 0
  int max_queue = 1024;
  // Rows of a step whose logits are made: each costs 4 · vocab bytes in the runner, and prompt
  // log-probabilities want them of every prompt position. > 0
  int max_logit_rows = 256;
  // A step with decodes takes fewer rows of prompts where it would take longer. 0: no target.
  double step_target_ms = 0;
  // Requests share the blocks of a common prefix, and find those of earlier ones again.
  bool prefix_cache = true;
  // Tokens guessed for a sequence in a step, at most, and who guesses them for one. 0: none are.
  int max_drafts = 0;
  std::function<std::unique_ptr<Drafter>()> make_drafter;

  absl::Status Validate() const;
};

struct EngineSnapshot {
  int running = 0, waiting = 0;  // sequences, requests of which no choice has started
  int64_t kv_blocks_used = 0, kv_blocks = 0;
  int64_t kv_blocks_cached = 0;  // not used, but can be found again
  uint64_t steps = 0;
  // Since the start: rows whose experts were replaced, and ended choices that depend on any.
  uint64_t degraded_rows = 0, degraded_choices = 0;
  bool draining = false;
};

// Whether the engine thread does anything.
struct EnginePulse {
  bool asleep = false;    // as nothing is there to do
  uint64_t progress = 0;  // else: changes as it works, also inside of a step
};

struct StepReport {
  int64_t rows = 0, prefill_rows = 0;
  int sequences = 0;
  int micro_batches = 1;
  absl::Duration took;
  absl::Duration waited;  // of it, for experts, with nothing to do
};

// Numbers that the engine thread reports; the service turns them into metrics. All called on the
// engine thread and must be cheap.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void OnStep(const StepReport& /*step*/) {}
  // One turn of the loop, step and all; the wait for requests before it is not part of it.
  virtual void OnTurn(absl::Duration /*took*/) {}
  // A request's first choice was admitted.
  virtual void OnQueued(absl::Duration /*waited*/) {}
  // Of each choice.
  virtual void OnFirstToken(absl::Duration /*since_submit*/) {}
  virtual void OnToken(absl::Duration /*since_last*/) {}
  virtual void OnPreempted() {}
  // A request that waited was refused after all, to make room for one of a higher priority. Its
  // choices finish with `why`.
  virtual void OnDisplaced(const absl::Status& /*why*/) {}
  // Of each row that a sequence depends on and whose experts were replaced.
  virtual void OnDegraded(LostExperts /*how*/) {}
  // Of each admission that may use the cache: tokens that were looked for and tokens found.
  virtual void OnPrefixLookup(int64_t /*tokens*/, int64_t /*found*/) {}
  // Of a sequence in a step, where tokens were guessed: how many, and how many were right.
  virtual void OnDrafts(int64_t /*drafts*/, int64_t /*accepted*/) {}
  // Of each choice; prompt_tokens with choice 0 and 0 with the others, so that sums count it once.
  virtual void OnFinished(Finish /*finish*/, int /*prompt_tokens*/, int /*output_tokens*/) {}
};

// A refusal's hint when to try again, in milliseconds; 0 where it has none.
int RetryAfterMs(const absl::Status& status);
// Whether another router may well take what was refused.
bool IsForElsewhere(const absl::Status& status);

class Engine {
 public:
  // `options` are valid; `runner` and `observer` (optional) outlive the engine.
  Engine(EngineOptions options, ModelRunner& runner, EngineObserver* observer);
  // Cancels what is left, abandons the step that waits for experts, and joins the thread.
  ~Engine();

  // Checks the request: INVALID_ARGUMENT names the field (also where it could never fit into the KV
  // cache); ALREADY_EXISTS while an earlier one of the same id runs; RESOURCE_EXHAUSTED when the
  // queue is full, with RetryAfterMs; UNAVAILABLE, IsForElsewhere, when draining. After OK, exactly
  // one event with a finish comes for each choice, unless CancelAll came first: with that same
  // RESOURCE_EXHAUSTED where a higher priority took the place of one that had not started.
  absl::Status Submit(EngineRequest request);
  // Ends a request within a step; its choices finish with kCancelled. Unknown ids are ignored.
  void Cancel(const TokenSink* sink, uint64_t request);
  // The same of one choice; the others go on.
  void CancelChoice(const TokenSink* sink, uint64_t request, int choice);
  // The sink's stream is gone: ends its requests, and no event reaches the sink after this returns.
  // Waits for an OnStep that is under way: not from inside one, nor under a lock that OnStep takes.
  void CancelAll(const TokenSink* sink);

  // No new requests; `done` is called once, on the engine thread, when all running ones have ended.
  void BeginDrain(std::function<void()> done);
  EngineSnapshot Snapshot() const;
  // Never waits.
  EnginePulse Pulse() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard::router
