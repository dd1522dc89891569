// Fans the rows of one micro-batch at one MoE layer out to the experts and combines what comes back
// over the fixed reduction tree: fp32 inside a reduction group by ascending expert id, rounded once
// to the wire dtype, then fp32 over groups ascending. The shared expert is the caller's.
//
// Driven by the engine thread alone; never blocks but in Wait.
#pragma once

#include <cstdint>
#include <span>

#include "absl/time/time.h"
#include "services/kernels/kernels.h"

namespace switchyard::router {

// Stands at the end of a token's experts where it has fewer than top_k.
inline constexpr int32_t kNoExpert = -1;

struct MoeJob {
  int layer = 0;
  int64_t tokens = 0;
  int top_k = 0;    // places for experts in each row
  kernels::Rows x;  // [tokens, hidden] in the wire dtype; stays until the job is done
  const int32_t* experts = nullptr;  // [tokens, top_k], ids ascending in each row, then kNoExpert
  const float* weights = nullptr;    // [tokens, top_k]
  float* out = nullptr;              // [tokens, hidden]: overwritten with the sum over groups
  uint8_t* lost = nullptr;           // [tokens]: set to 1 where a row could not be computed
  int priority = 0;
  absl::Time deadline = absl::InfiniteFuture();
};

using MoeTicket = uint64_t;

// An interface, because the model's tests drive it with a fake.
class Dispatcher {
 public:
  virtual ~Dispatcher() = default;
  // Starts a job; its memory must live until Finished says so.
  virtual MoeTicket Start(const MoeJob& job) = 0;
  // Makes progress (with local experts: computes) and says whether that job is done.
  virtual bool Finished(MoeTicket ticket) = 0;
  // Gives a job up that is not finished: its memory is free from now on, its ticket unknown.
  virtual void Abandon(MoeTicket ticket) = 0;
  // Returns when there may be progress, at the latest at `until`.
  virtual void Wait(absl::Time until) = 0;
  // The experts of a layer, [experts], with 1 where nobody waits for one any more: a job that names
  // it loses those rows at once. Empty where there is none. Valid until the next call of anything.
  virtual std::span<const uint8_t> Gone(int /*layer*/) { return {}; }
  // Counts rows of experts that were computed elsewhere than by a job: ids of pairs, or kNoExpert.
  virtual void CountComputed(int /*layer*/, std::span<const int32_t> /*experts*/) {}
  // Whether anybody would read experts beforehand for being told that they will be wanted.
  virtual bool WantsHints() const { return false; }
  // These of a layer probably will, the most wanted first.
  virtual void Hint(int /*layer*/, std::span<const int32_t> /*experts*/) {}
};

}  // namespace switchyard::router
