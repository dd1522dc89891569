// Time for waits, limits and durations of our own: it goes on evenly whatever is done to the clock
// of the machine. As absl::Time it counts from when this process first asked, where it agrees with
// absl::Now(); it means nothing to other processes. absl::Now() is for what people and files are
// told.
#pragma once

#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace switchyard {

// Thread-safe.
absl::Time SteadyNow();

// What absl::CondVar is, by that clock: a timed wait of absl's, also of its Mutex, ends by the
// machine's, and so an hour late where that is set back by one meanwhile. Thread-safe.
class SteadyCondVar {
 public:
  void SignalAll();
  void Wait(absl::Mutex* mutex) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    WaitUntil(mutex, absl::InfiniteFuture());
  }
  // May return earlier, as all of these do.
  void WaitUntil(absl::Mutex* mutex, absl::Time until) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // Until `condition`, which somebody signals, holds, or `timeout` is over; whether it holds.
  template <typename Condition>
  bool Await(absl::Mutex* mutex, absl::Duration timeout, const Condition& condition)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    for (const absl::Time until = SteadyNow() + timeout; !condition();) {
      if (SteadyNow() >= until) return false;
      WaitUntil(mutex, until);
    }
    return true;
  }

 private:
  std::mutex own_;  // held from before `mutex` is let go until the wait has begun
  std::condition_variable condition_;
};

}  // namespace switchyard
