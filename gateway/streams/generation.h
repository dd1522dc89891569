// The one pipeline of both fronts: a GenerateRequest becomes a plan, the plan a router's request,
// and its tokens become text, split, cut at stop strings and given to a sink in chunks.
//
// A Generation lives from Start to its end: all choices done, an error, or Cancel(). Its sink is
// called by one thread at a time (gRPC's), in order, and must only enqueue. Whatever ends a
// generation early (a stop string in every choice, a client that left, one that does not read) ends
// it at the router, and a stop string in one of several choices ends that choice there. Nothing
// grows but the ids of what came: a chunk is built, given and forgotten.
//
// Where its router is lost it goes on at another (replay.h); the sink sees a pause.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "gateway/streams/replay.h"
#include "gateway/streams/request_plan.h"
#include "gateway/streams/served_model.h"
#include "gateway/text/reasoning_split.h"
#include "gateway/text/stop_matcher.h"
#include "gateway/upstream/router_client.h"
#include "services/base/clock.h"
#include "switchyard/v1/inference.pb.h"

namespace switchyard::gateway {

// "renormalise", "next-best"; "" where nothing was replaced.
const char* NameOf(v1::Degraded how);

struct CallContext {
  std::string request_id;  // IsRequestId; empty: the request's, or one is made
  absl::Time deadline = absl::InfiniteFuture();
  std::string fair_key;  // opaque, of the client's key
};

class ChunkSink {
 public:
  virtual ~ChunkSink() = default;
  // False: the client is gone or does not read; the generation is cancelled and no OnEnd comes.
  virtual bool OnChunk(const v1::GenerateResponse& chunk) = 0;
  // The last call unless cancelled. OK: every choice has its finish_reason and usage was in the
  // last chunk. retry_after_ms: 0 if the router gave none.
  virtual void OnEnd(const absl::Status& status, int retry_after_ms) = 0;
};

// What metrics want to know. Called on gRPC's threads; must not block.
class GenerationObserver {
 public:
  virtual ~GenerationObserver() = default;
  virtual void OnStart(int prompt_tokens) = 0;
  virtual void OnFirstToken(absl::Duration since_start) = 0;
  virtual void OnNextToken(absl::Duration since_last) = 0;  // of the same choice
  virtual void OnEnd(absl::StatusCode code, int completion_tokens) = 0;
  // It goes on at another router; why the one before is out: "broken", "ended", "silent" (as in
  // Loss), or "refused".
  virtual void OnResumed(const char* /*reason*/) {}
  // From the loss of a router to the next token.
  virtual void OnStall(absl::Duration /*took*/) {}
  // A token of a router that had been given up, or that had come before.
  virtual void OnStaleToken() {}
  // The first token that depends on experts having been replaced.
  virtual void OnDegraded(v1::Degraded /*how*/) {}
};

struct GenerationOptions {
  // Times in a row that a stream may lose its router without a token in between. 0: none goes on.
  int resume_attempts = 4;
  // How long a stream that lost its router comes back to queues that are full.
  absl::Duration router_wait = absl::ZeroDuration();
};

class Generation;

// Those that run; outlives the generator for stragglers.
class OpenGenerations {
 public:
  void Add(const std::shared_ptr<Generation>& generation);
  void Remove(const Generation* generation);
  std::vector<std::shared_ptr<Generation>> All() const;
  int size() const;
  bool WaitUntilNone(absl::Duration timeout) const;

 private:
  mutable absl::Mutex mutex_;
  mutable SteadyCondVar emptied_;
  std::unordered_map<const Generation*, std::weak_ptr<Generation>> open_ ABSL_GUARDED_BY(mutex_);
};

class Generation final : public TokenListener, public std::enable_shared_from_this<Generation> {
 public:
  // See Generator::Start.
  Generation(const ServedModel& model, RouterClient& routers, GenerationObserver* observer,
             GenerationOptions options, std::shared_ptr<OpenGenerations> open, RequestPlan plan,
             const ModelInfo& info, const CallContext& context, std::shared_ptr<ChunkSink> sink);
  absl::Status Submit();

  // The client left. Idempotent; the sink is not called again once this has returned, nor kept.
  void Cancel();
  // Ends with an error that the sink is told. False: it had ended before.
  bool Abort(const absl::Status& status);
  const std::string& request_id() const { return chunk_head_id_; }

  void OnToken(const internal::v1::Token& token) override;
  void OnBroken(const Loss& loss) override;

 private:
  struct ChoiceState {
    ChoiceState(const ServedModel& model, const RequestPlan& plan);
    ReasoningSplitter split;
    StopMatcher reasoning_stop;
    StopMatcher content_stop;
    int tokens = 0;
    bool announced = false;  // its first chunk went out
    bool reasoning_over = false;
    bool finished = false;
    v1::Degraded degraded = v1::DEGRADED_NO;  // stays, also over a change of router
    absl::Time last_token;
  };

  // Sends the newest attempt to a router.
  absl::Status Send(absl::Time not_before);
  // The same again, behind what has come; or the end, by `why`.
  void Resume(const absl::Status& why, const char* reason, absl::Time not_before);
  // False: the stream may not go on, and has ended.
  bool BeginAttempt(const absl::Status& why, const char* reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of a request that no router has: past the deadline that is what ended it.
  absl::Status InTime(const absl::Status& status) const;
  // Whether a router refused what another, or the same one later, may take.
  bool IsForElsewhere(const internal::v1::Token& token) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of tokens that are no news.
  void PassOver(const internal::v1::Token& token, Replay::Verdict verdict)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Handle(const internal::v1::Token& token) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool MustWaitForPromptLogprobs(const internal::v1::Token& token)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void HandleChoice(const internal::v1::Token& token) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteDegraded(const internal::v1::Token& token, ChoiceState& choice)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Announce(v1::Choice* out) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddRouting(const internal::v1::Token& token, v1::Choice* out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddToken(const internal::v1::Token& token, ChoiceState& choice, v1::Choice* out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddText(const ReasoningDelta& delta, ChoiceState& choice, v1::Choice* out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Finish(const internal::v1::Token& token, ChoiceState& choice, v1::Choice* out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailChoice(const internal::v1::Token& token) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Emit(bool worth_it) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void End(const absl::Status& status, int retry_after_ms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Close(absl::StatusCode code) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // After the lock was let go: tells the router where it would go on for nobody.
  void CancelAtRouterIfNeeded();
  void NoteToken(ChoiceState& choice) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  v1::TokenLogprob ToLogprob(int32_t id, float logprob) const;

  const ServedModel& model_;
  RouterClient& routers_;
  GenerationObserver* const observer_;
  const GenerationOptions options_;
  const std::shared_ptr<OpenGenerations> open_;
  const std::string chunk_head_id_;
  const absl::Time start_, deadline_;

  absl::Mutex mutex_;
  RequestPlan plan_ ABSL_GUARDED_BY(mutex_);
  std::vector<int32_t> moe_layers_ ABSL_GUARDED_BY(mutex_);
  int moe_top_k_ ABSL_GUARDED_BY(mutex_) = 0;
  std::shared_ptr<ChunkSink> sink_ ABSL_GUARDED_BY(mutex_);
  std::vector<ChoiceState> choices_ ABSL_GUARDED_BY(mutex_);
  v1::GenerateResponse chunk_ ABSL_GUARDED_BY(mutex_);  // reused: its head stays
  Replay replay_ ABSL_GUARDED_BY(mutex_);
  Numerics numerics_ ABSL_GUARDED_BY(mutex_);  // of what has come from a lost router
  absl::Time lost_at_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();  // until the next token
  uint64_t handle_ ABSL_GUARDED_BY(mutex_) = 0;              // 0: Send has not returned yet
  bool cancel_wanted_ ABSL_GUARDED_BY(mutex_) = false;       // of the whole request
  std::vector<int> cancel_choices_ ABSL_GUARDED_BY(mutex_);  // that met their stop string
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  bool sent_ ABSL_GUARDED_BY(mutex_) = false;      // a chunk went out
  bool degraded_ ABSL_GUARDED_BY(mutex_) = false;  // one of its choices
  int finished_ ABSL_GUARDED_BY(mutex_) = 0;
  int failed_ ABSL_GUARDED_BY(mutex_) = 0;
  v1::Usage usage_ ABSL_GUARDED_BY(mutex_);
  // Echo with log-probabilities: they come with the first token of choice 0; tokens of other
  // choices that come before wait.
  bool have_prompt_logprobs_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<internal::v1::PromptLogprob> prompt_logprobs_ ABSL_GUARDED_BY(mutex_);
  std::vector<internal::v1::Token> held_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace switchyard::gateway
