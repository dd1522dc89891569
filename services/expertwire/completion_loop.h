// A gRPC completion queue and the one lock of everything that hangs on it. Whoever holds the mutex
// may drive the queue: normally the thread that waits for its results, and every kTick a helper
// when that thread is busy with something else.
#pragma once

#include <grpcpp/completion_queue.h>

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/expertwire/shared_pipe.h"

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

// A stream that is open. Its frames may come through shared memory, beside the queue. Called with
// the loop's mutex held.
class Pollable {
 public:
  // Whether the queue is not needed to hear of its frames.
  virtual bool shares_memory() const = 0;
  // Handles what has come through shared memory. Whether anything had.
  virtual bool Poll() = 0;
  // Of the shared memory; asked before Arm.
  virtual Bell bell() const = 0;
  // The loop is about to sleep: from now on whatever comes rings the bell or, not `by_bell`,
  // completes an operation of the queue. False if something has come.
  virtual bool Arm(bool by_bell) = 0;

 protected:
  ~Pollable() = default;
};

class CompletionLoop {
 public:
  explicit CompletionLoop(std::unique_ptr<grpc::CompletionQueue> queue);
  // Shuts the queue down and drains it, unless Close did.
  ~CompletionLoop();

  absl::Mutex& mutex() ABSL_LOCK_RETURNED(mutex_) { return mutex_; }
  grpc::CompletionQueue* queue() { return queue_.get(); }

  // Until Remove, which may be called from inside of its Poll.
  void Add(Pollable* pollable) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    pollables_.push_back(pollable);
  }
  void Remove(Pollable* pollable) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Handles what is complete, at most a bounded number, without sleeping. Whether anything was.
  // With pollables the queue itself, which costs a system call, is looked at every 20 µs only.
  bool Poll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether sleeping and being woken costs a few microseconds only: all streams share memory.
  bool SleepsLightly() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The same, but sleeps until `until` for the first. Keeps the mutex. With SleepsLightly the queue
  // is looked at once at the end.
  bool Sleep(absl::Time until) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // No operation may be started afterwards; handles all that are outstanding.
  void Close() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

 private:
  bool PollPollables() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Sleeps until a bell rings; false if that is not possible.
  bool SleepLightly(absl::Time until) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool PollQueue(absl::Time until) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  const std::unique_ptr<grpc::CompletionQueue> queue_;
  std::vector<Pollable*> pollables_ ABSL_GUARDED_BY(mutex_);  // null: removed while they are polled
  bool no_bells_ ABSL_GUARDED_BY(mutex_) = false;             // the kernel has none
  absl::Time next_queue_poll_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
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
