// The router's heart: one thread that owns scheduler, block tables and KV, and runs steps.
// Everything else hands it work through a bounded queue and gets tokens through sinks. A step: take
// what arrived; admit and preempt; build a ragged batch of decode tokens and prefill chunks; run
// the model; sample; emit one message a sink.
//
// The tokens of a request are a function of the request alone: not of its batch, chunking,
// preemption or threads (counter-based sampling, per-row arithmetic).
//
// Thread-safety: Submit, Cancel, CancelAll, Snapshot and BeginDrain may be called by any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "router/graph/model_runner.h"
#include "router/loop/request.h"

namespace switchyard::router {

struct EngineOptions {
  int max_model_len = 0;        // tokens of prompt and output; > 0
  int64_t kv_blocks = 0;        // blocks of kBlockTokens tokens
  int max_batch_tokens = 2048;  // rows of a step
  int max_running = 256;        // sequences in a step
  int max_queue = 1024;         // requests waiting; one more is refused with RESOURCE_EXHAUSTED
};

struct EngineSnapshot {
  int running = 0, waiting = 0;  // sequences, requests
  int64_t kv_blocks_used = 0, kv_blocks = 0;
  uint64_t steps = 0;
  bool draining = false;
};

// Numbers that the engine thread reports; the service turns them into metrics. All called on the
// engine thread and must be cheap.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void OnStep(int64_t rows, int64_t prefill_rows, int sequences, absl::Duration took) {}
  virtual void OnQueued(absl::Duration waited) {}
  virtual void OnFirstToken(absl::Duration since_submit) {}
  virtual void OnToken(absl::Duration since_last) {}
  virtual void OnPreempted() {}
  virtual void OnFinished(Finish finish, int prompt_tokens, int output_tokens) {}
};

class Engine {
 public:
  // `runner` and `observer` (optional) outlive the engine.
  Engine(EngineOptions options, ModelRunner& runner, EngineObserver* observer);
  ~Engine();  // cancels what is left and joins the thread

  // Checks the request (INVALID_ARGUMENT names the field; RESOURCE_EXHAUSTED when the queue is
  // full; UNAVAILABLE when draining). After OK, exactly one event with a finish comes for each
  // choice.
  absl::Status Submit(EngineRequest request);
  // Ends a request within a step; its choices finish with kCancelled. Unknown ids are ignored.
  void Cancel(const TokenSink* sink, uint64_t request);
  // The sink's stream is gone: ends its requests, and no event reaches the sink after this returns.
  void CancelAll(const TokenSink* sink);

  // No new requests; `done` is called once, on the engine thread, when all running ones have ended.
  void BeginDrain(std::function<void()> done);
  EngineSnapshot Snapshot() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard::router
