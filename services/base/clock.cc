#include "services/base/clock.h"

#include <algorithm>
#include <chrono>

#include "absl/time/clock.h"

namespace switchyard {
namespace {

absl::Duration Elapsed() {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

// Longer ones end early.
constexpr absl::Duration kLongestWait = absl::Hours(1);

}  // namespace

absl::Time SteadyNow() {
  static const absl::Time zero = absl::Now() - Elapsed();
  return zero + Elapsed();
}

void SteadyCondVar::SignalAll() {
  { const std::lock_guard<std::mutex> none_between(own_); }
  condition_.notify_all();
}

void SteadyCondVar::WaitUntil(absl::Mutex* mutex, absl::Time until) {
  const absl::Duration left = std::clamp(until - SteadyNow(), absl::ZeroDuration(), kLongestWait);
  {
    std::unique_lock<std::mutex> own(own_);
    mutex->Unlock();
    condition_.wait_for(own, absl::ToChronoNanoseconds(left));
  }
  mutex->Lock();
}

}  // namespace switchyard
