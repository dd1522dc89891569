#include "services/rpc/shutdown_signal.h"
#include "services/base/clock.h"

#include <signal.h>

#include <algorithm>

namespace switchyard::rpc {
namespace {

sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

ShutdownSignal::ShutdownSignal() {
  const sigset_t set = Signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  // A peer that went away is an error of its write.
  signal(SIGPIPE, SIG_IGN);
}

void ShutdownSignal::Wait() {
  while (!WaitFor(absl::Hours(1))) {
  }
}

bool ShutdownSignal::WaitFor(absl::Duration timeout) {
  const sigset_t set = Signals();
  const absl::Time end = SteadyNow() + timeout;
  while (true) {
    const timespec left = absl::ToTimespec(std::max(absl::ZeroDuration(), end - SteadyNow()));
    if (sigtimedwait(&set, nullptr, &left) > 0) return true;
    // Another signal may have ended the wait early.
    if (SteadyNow() >= end) return false;
  }
}

}  // namespace switchyard::rpc
