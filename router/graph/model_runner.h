// One forward pass over a ragged batch, as a stage machine: Start, then Advance until it is done.
// While Advance returns kWaiting, rows are out at the experts; Wait returns when there may be
// progress.
//
// Driven by the engine thread alone. An interface, because the engine's tests drive it with a fake.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "router/graph/lost_experts.h"
#include "services/model/spec.h"

namespace switchyard::router {

// Rows of all sequences of a step, back to back: decode tokens and prefill chunks, no padding. The
// rows of one sequence are consecutive and their positions ascend by one. The runner writes the K/V
// (or latent) of every row into its block before attention reads it. Sequences of one prefix may
// share blocks, but never one that a row of the step is written to.
struct StepBatch {
  std::vector<int32_t> tokens;     // [rows]
  std::vector<int32_t> positions;  // [rows], absolute
  // [groups][rows], of the row's sequence: a table for each group of layers (kv_layout.h). What is
  // behind a group's window of all rows to come is not looked at.
  std::vector<std::vector<const int32_t*>> block_tables;
  std::vector<int32_t> logit_rows;  // rows whose logits are wanted, ascending
  std::vector<int32_t> trace_rows;  // rows whose routing is wanted, ascending
  int micro_batches = 1;            // 1 or 2; cut at a sequence near the middle
  int priority = 0;
  absl::Time deadline = absl::InfiniteFuture();

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  void Clear() {
    tokens.clear(), positions.clear();
    for (auto& of_group : block_tables) of_group.clear();
    logit_rows.clear(), trace_rows.clear();
    micro_batches = 1, priority = 0, deadline = absl::InfiniteFuture();
  }
};

// Valid until the next Start.
struct StepResult {
  const float* logits = nullptr;  // [logit_rows, vocab], fp32
  std::vector<uint8_t> lost;      // [rows]: 1 where an expert's row was lost
  std::vector<uint8_t> degraded;  // [rows]: the LostExperts that replaced experts of the row, or 0
  // [trace_rows × moe_layers × width], ids ascending, then kNoExpert. The width is top_k, or one
  // more under a policy that may add an expert.
  std::vector<int32_t> routed_experts;
  std::vector<float> routed_weights;
  absl::Duration waited;  // while all rows were out at the experts
};

class ModelRunner {
 public:
  enum class Progress { kWaiting, kDone };

  virtual ~ModelRunner() = default;
  virtual const ModelSpec& spec() const = 0;
  virtual void Start(const StepBatch& batch) = 0;  // the batch stays until kDone
  virtual Progress Advance() = 0;
  virtual void Wait(absl::Time until) = 0;
  // Nobody wants the step that waits: Advance says kDone, all its rows count as lost.
  virtual void Abandon() = 0;
  virtual const StepResult& result() const = 0;
  // Makes one KV block equal to another, in all of its layers. Not between Start and kDone.
  virtual void CopyBlock(int32_t from, int32_t to) = 0;
  // Changes while a step is computed, also inside of a long Advance. Any thread may ask.
  virtual uint64_t progress() const { return 0; }
};

}  // namespace switchyard::router
