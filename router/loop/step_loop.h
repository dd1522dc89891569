// The engine without its thread: admitted and waiting sequences, the blocks, and the step as a
// stage machine. BeginStep plans and starts; Poll drives the runner; FinishStep samples and emits.
// Between Begin and Finish requests may be added, cancelled or expire: their finish goes out at
// once, their rows are dropped with the step. Time comes in as an argument.
//
// Not thread-safe: the engine thread owns it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "router/graph/model_runner.h"
#include "router/kv/block_pool.h"
#include "router/loop/engine.h"
#include "router/loop/outbox.h"
#include "router/loop/sequence.h"
#include "router/loop/waiting_queue.h"
#include "router/sample/sampler.h"
#include "router/schedule/batch_policy.h"
#include "router/schedule/micro_batches.h"
#include "services/model/kv_layout.h"

namespace switchyard::router {

class StepLoop {
 public:
  // All outlive the loop.
  StepLoop(const EngineOptions& options, ModelRunner& runner, EngineObserver& observer,
           Outbox& outbox);

  // `request` has passed CheckRequest and its key is not in use.
  void Add(EngineRequest request, absl::Time now);
  void Cancel(const RequestKey& key);
  void CancelChoice(const RequestKey& key, int choice);
  void CancelSink(const TokenSink* sink);
  // Refuses a request that waits, if it has not started meanwhile.
  void Displace(const RequestKey& key, const absl::Status& why);
  void CancelEverything();
  // Ends the requests whose deadline has passed.
  void Expire(absl::Time now);

  // False if there is nothing to compute.
  bool BeginStep(absl::Time now);
  ModelRunner::Progress Poll() { return runner_.Advance(); }
  void FinishStep(absl::Time now);
  // Whether a step is in flight that nobody waits for any more.
  bool step_is_wasted() const;

  bool idle() const { return running_.empty() && waiting_.empty(); }
  uint64_t steps() const { return steps_; }
  int running() const { return static_cast<int>(running_.size()); }
  int unstarted_requests() const { return unstarted_; }
  uint64_t started_requests() const { return started_; }
  uint64_t degraded_rows() const { return degraded_rows_; }
  uint64_t degraded_choices() const { return degraded_choices_; }
  const BlockPool& pool() const { return pool_; }
  // Requests that have ended since the last call.
  std::vector<RequestKey> TakeEnded();
  // Those that have ceased to be unstarted since the last call.
  std::vector<RequestKey> TakeStarted();

 private:
  // The rows of one sequence in the step that runs.
  struct Slice {
    Sequence* sequence = nullptr;
    int64_t first_row = 0, rows = 0;
    int64_t first_logit = 0, first_trace = 0;  // of the step's logit and trace rows
    int64_t first_scored = 0;                  // position of the first row that scores the prompt
    int64_t traces = 0;
    int64_t drafts = 0;  // of the rows, the last ones
  };

  void Continue(Sequence& s, absl::Time now);
  void TakeSnapshot();
  void NoteStarted(Request& request);
  SequenceView ViewOfWaiting(Sequence& s);
  // Its place, and the blocks of its prefix that are there. The rest of them is to be grown.
  void Admit(Sequence& s, absl::Time now);
  void Activate(Sequence& s);
  void Preempt(Sequence& s);
  void AppendRows(Sequence& s, int64_t rows);

  void GuessNext(Sequence& s);
  // What sequences share (step_prefix.cc).
  struct Prefix {
    int64_t blocks = 0;  // of the sequence's tokens, that need not be computed
    int64_t used = 0;    // of these, in all groups, that the next token sees and others hold
  };
  void ExtendDigests(Sequence& s, int64_t blocks);
  Prefix FindPrefix(Sequence& s);
  void SharePrefix(Sequence& s);
  // Full blocks can be found by others, but for those that depend on rows whose experts were
  // replaced; and those behind the window are given back.
  void SettleBlocks(Sequence& s);
  // The other choices of a request whose prompt was computed: each draws its first token from the
  // same logits, or waits where there is no place for it.
  void Fork(const Sequence& leader, std::span<const float> logits, absl::Time now);
  // Those choices wait for places of their own from now on.
  std::vector<Sequence*> Release(Request& request);
  // `blocks`: of each group.
  bool HasPlaceFor(const Sequence& s, int64_t blocks) const;
  // The one that computed the prompt ended before it was: another takes its place.
  void Promote(Request& request);

  void MeasureStep(absl::Duration took);
  void FinishSlice(const Slice& slice, const StepResult& result, absl::Time now);
  // That experts of the row of its token at `position` were replaced, where they were.
  void NoteDegraded(Sequence& s, int64_t position, const StepResult& result, int64_t row);
  // Goes on with the rows of drafts, as long as what was drawn is what was guessed. `logits` are of
  // the first of them.
  void AcceptDrafts(const Slice& slice, const StepResult& result, const float* logits,
                    absl::Time now);
  void TakeTraces(const Slice& slice, const StepResult& result);
  // The number of logit rows that were used, or the error of one.
  absl::StatusOr<int64_t> ScorePrompt(const Slice& slice, const StepResult& result);
  // Moves routing and prompt scores that wait into an event, as many as one holds.
  static void TakeComputed(Sequence& s, TokenEvent* event);
  // Sends what waits, but for what fits into the event that is returned.
  TokenEvent SendComputed(Sequence& s);
  void SampleNext(Sequence& s, std::span<const float> logits, absl::Time now);

  TokenEvent EventOf(const Sequence& s) const;
  void Fail(Sequence& s, absl::Status why);
  void CancelRequest(Request& request);
  void CancelSequence(Sequence& s);
  // Sends the finish, with or without a token.
  void End(Sequence& s, TokenEvent event);
  // Frees what has ended, when no step is in flight.
  void Sweep();

  const EngineOptions& options_;
  ModelRunner& runner_;
  EngineObserver& observer_;
  Outbox& outbox_;
  BlockPool pool_;
  Sampler sampler_;
  const KvLayout layout_;

  absl::flat_hash_map<RequestKey, std::unique_ptr<Request>> requests_;
  WaitingQueue waiting_;
  std::vector<Sequence*> running_;
  std::vector<RequestKey> ended_, started_keys_;       // until they are taken
  std::vector<Request*> to_sweep_;                     // open == 0
  absl::Time next_deadline_ = absl::InfiniteFuture();  // no request's is earlier
  // Requests that another router began came before all that are new here.
  uint64_t next_continued_ = 1, next_arrival_ = uint64_t{1} << 62;
  int unstarted_ = 0;
  uint64_t started_ = 0;
  uint64_t degraded_rows_ = 0, degraded_choices_ = 0;

  bool in_flight_ = false;
  uint64_t steps_ = 0;
  absl::Time step_began_;
  StepShape shape_;     // of the step that runs
  StepCostModel cost_;  // of steps that run whole
  MicroBatches micro_batches_;
  StepBatch batch_;
  std::vector<Slice> slices_;
  BatchSnapshot snapshot_;
  std::vector<Sequence*> candidates_;  // snapshot_.waiting, as sequences
};

}  // namespace switchyard::router
