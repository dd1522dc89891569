// A ModelRunner without a model: the logits of a row are a hash of all tokens of its sequence (of
// those in its window), read back from the blocks that its table names. A wrong table, position or
// rewrite shows up as a wrong token, and the plain mistakes (a gap in the positions, a write to a
// block of two sequences, a block outside of the pool) as errors(). Any batching, chunking and
// preemption must give the same tokens as Reference.
//
// Driven by one thread; Hold, Release, Stick, errors and steps may be called by any.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "router/graph/model_runner.h"
#include "router/kv/kv_storage.h"

namespace switchyard::router {

struct FakeRunnerOptions {
  int vocab = 61;
  int moe_layers = 2;
  int top_k = 2;
  std::vector<int> eos_ids = {0};
  int64_t kv_blocks = 64;
  int window = 0;          // of the layers; 0: none
  bool alternate = false;  // every other layer sees all
  int waits = 0;           // kWaiting answers before a step is done
  // Damage, by the sequence's tokens up to the row; unset: none.
  std::function<bool(const std::vector<int32_t>&)> lose_row;
  std::function<LostExperts(const std::vector<int32_t>&)> degrade_row;  // the logits stay
  std::function<bool(const std::vector<int32_t>&)> nan_logits;

  // Tokens that a row sees in the layers that see most; 0: all.
  int sees() const { return alternate ? 0 : window; }
};

class FakeRunner : public ModelRunner {
 public:
  explicit FakeRunner(FakeRunnerOptions options);

  const ModelSpec& spec() const override { return spec_; }
  void Start(const StepBatch& batch) override;
  Progress Advance() override;
  void Wait(absl::Time until) override;
  void Abandon() override;
  const StepResult& result() const override { return result_; }
  void CopyBlock(int32_t from, int32_t to) override;
  uint64_t progress() const override { return progress_.load(); }

  // Steps that start from now on wait until Release.
  void Hold();
  void Release();
  // Returns when a step is held.
  void AwaitHeld();
  // Lets Wait of a held step not return before Release; returns when it is called.
  void Stick();
  void MakeProgress() { progress_.fetch_add(1); }

  std::vector<std::string> errors() const;
  int64_t steps() const;
  int64_t rows() const;
  int64_t copies() const;     // calls of CopyBlock
  int64_t max_rows() const;   // of one step
  int64_t waits() const;      // calls of Wait
  int64_t abandoned() const;  // steps

  // What the logits after `tokens` are.
  static std::vector<float> Logits(const std::vector<int32_t>& tokens, int vocab, int window = 0);
  // The routing of the last of `tokens`.
  struct Routing {
    std::vector<int32_t> experts;  // [moe_layers × top_k]
    std::vector<float> weights;
  };
  static Routing RoutingOf(const std::vector<int32_t>& tokens, int moe_layers, int top_k);

 private:
  struct Slot {
    int32_t token = -1, position = -1;
    int group = -1;
  };

  void Error(std::string what) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CheckRows(const StepBatch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CheckTables(const StepBatch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Compute(const StepBatch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Slot& SlotOf(const StepBatch& batch, int64_t row, int group, int32_t position);
  // The tokens that a row sees, as the blocks hold them: of a group, and where most is seen.
  std::vector<int32_t> ReadGroup(const StepBatch& batch, int64_t row, int group)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<int32_t> ReadBack(const StepBatch& batch, int64_t row)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const FakeRunnerOptions options_;
  ModelSpec spec_;
  KvLayout layout_;
  std::vector<Slot> slots_;  // [kv_blocks × kBlockTokens]
  const StepBatch* batch_ = nullptr;
  int waits_left_ = 0;
  std::vector<float> logits_;
  StepResult result_;

  mutable absl::Mutex mutex_;
  std::vector<std::string> errors_ ABSL_GUARDED_BY(mutex_);
  int64_t steps_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t rows_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t copies_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t max_rows_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t wait_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t abandoned_ ABSL_GUARDED_BY(mutex_) = 0;
  bool given_up_ ABSL_GUARDED_BY(mutex_) = false;  // the step that runs
  bool hold_ ABSL_GUARDED_BY(mutex_) = false;
  bool held_ ABSL_GUARDED_BY(mutex_) = false;
  bool stick_ ABSL_GUARDED_BY(mutex_) = false;
  bool stuck_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<uint64_t> progress_ = 0;
};

}  // namespace switchyard::router
