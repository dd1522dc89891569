// A gRPC completion queue and the one lock of everything that hangs on it. Whoever holds the mutex
// may drive the queue: normally the thread that waits for its results, and every kTick a helper
// when that thread is busy with something else.
#pragma once

#include <grpcpp/completion_queue.h>

#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace switchyard::expertwire {

// The helper's beat, and how long whoever drives the queue sleeps at most.
inline constexpr absl::Duration kTick = absl::Milliseconds(50);

// The tag of one operation. Called with the loop's mutex held.
class Completion {
 public:
  virtual void OnCompletion(bool ok) = 0;

 protected:
  ~Completion() = default;
};

class CompletionLoop {
 public:
  explicit CompletionLoop(std::unique_ptr<grpc::CompletionQueue> queue);
  // Shuts the queue down and drains it, unless Close did.
  ~CompletionLoop();

  absl::Mutex& mutex() ABSL_LOCK_RETURNED(mutex_) { return mutex_; }
  grpc::CompletionQueue* queue() { return queue_.get(); }

  // Handles what is complete, at most a bounded number, without sleeping. Whether anything was.
  bool Poll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The same, but sleeps until `until` for the first. Keeps the mutex.
  bool Sleep(absl::Time until) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // No operation may be started afterwards; handles all that are outstanding.
  void Close() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

 private:
  absl::Mutex mutex_;
  const std::unique_ptr<grpc::CompletionQueue> queue_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

// The ladder of a bounded wait: pauses, then sched_yield, then it says that sleeping is due.
class Ladder {
 public:
  // With `crowded` it yields from the first turn.
  Ladder(absl::Duration yield_for, bool crowded) : yield_for_(yield_for), crowded_(crowded) {}
  // One turn; false once it is time to sleep.
  bool Turn();

 private:
  absl::Duration yield_for_;
  bool crowded_;
  int turns_ = 0;
  absl::Time start_;
};

// Whether more threads of this machine are runnable than it has cores. Takes some 10 µs.
bool MachineIsCrowded();

}  // namespace switchyard::expertwire
