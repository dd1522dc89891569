#include "services/expertwire/completion_loop.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <thread>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "services/base/clock.h"
#include "services/base/pause.h"

namespace switchyard::expertwire {
namespace {

constexpr int kEventsAPoll = 256;
constexpr absl::Duration kQueuePollEvery = absl::Microseconds(20);
constexpr int kPauses = 20;

}  // namespace

CompletionLoop::CompletionLoop(std::unique_ptr<grpc::CompletionQueue> queue)
    : queue_(std::move(queue)) {}

CompletionLoop::~CompletionLoop() {
  absl::MutexLock lock(&mutex_);
  Close();
}

void CompletionLoop::Remove(Pollable* pollable) {
  std::ranges::replace(pollables_, pollable, nullptr);
}

bool CompletionLoop::PollPollables() {
  bool any = false;
  for (size_t i = 0; i < pollables_.size(); ++i) {
    if (pollables_[i] != nullptr) any |= pollables_[i]->Poll();
  }
  std::erase(pollables_, nullptr);
  return any;
}

bool CompletionLoop::Poll() {
  const bool any = PollPollables();
  if (SleepsLightly()) {
    const absl::Time now = SteadyNow();
    if (now < next_queue_poll_) return any;
    next_queue_poll_ = now + kQueuePollEvery;
  }
  return PollQueue(absl::InfinitePast()) || any;
}

bool CompletionLoop::SleepsLightly() const {
  return !no_bells_ && !pollables_.empty() && pollables_.size() <= kMaxBells &&
         std::ranges::all_of(pollables_,
                             [](const Pollable* p) { return p == nullptr || p->shares_memory(); });
}

bool CompletionLoop::SleepLightly(absl::Time until) {
  absl::InlinedVector<Bell, 8> bells;
  for (const Pollable* pollable : pollables_) bells.push_back(pollable->bell());
  for (Pollable* pollable : pollables_) {
    if (!pollable->Arm(/*by_bell=*/true)) return true;
  }
  no_bells_ = !SleepOnBells(bells, until);
  return !no_bells_;
}

bool CompletionLoop::Sleep(absl::Time until) {
  if (PollPollables()) return true;
  if (SleepsLightly() && SleepLightly(until)) {
    until = absl::InfinitePast();
  } else {
    // All are asked: what one of them has does not keep the others from telling.
    for (Pollable* pollable : pollables_) {
      if (!pollable->Arm(/*by_bell=*/false)) until = absl::InfinitePast();
    }
  }
  const bool any = PollPollables();
  return PollQueue(any ? absl::InfinitePast() : until) || any;
}

bool CompletionLoop::PollQueue(absl::Time until) {
  bool any = false;
  for (int i = 0; i < kEventsAPoll; ++i) {
    void* tag = nullptr;
    bool ok = false;
    const gpr_timespec deadline =
        any || until == absl::InfinitePast()
            ? gpr_time_0(GPR_CLOCK_MONOTONIC)
            : gpr_time_add(
                  gpr_now(GPR_CLOCK_MONOTONIC),
                  gpr_time_from_nanos(absl::ToInt64Nanoseconds(until - SteadyNow()), GPR_TIMESPAN));
    if (queue_->AsyncNext(&tag, &ok, deadline) != grpc::CompletionQueue::GOT_EVENT) break;
    static_cast<Completion*>(tag)->OnCompletion(ok);
    any = true;
  }
  return any;
}

void CompletionLoop::Close() {
  if (std::exchange(closed_, true)) return;
  queue_->Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_->Next(&tag, &ok)) static_cast<Completion*>(tag)->OnCompletion(ok);
}

bool Ladder::Turn() {
  if (turns_ == 0) start_ = SteadyNow();
  if (++turns_ <= kPauses && !crowded_) {
    Pause();
    return true;
  }
  sched_yield();
  return SteadyNow() - start_ < yield_for_;
}

bool MachineIsCrowded() {
  std::FILE* file = std::fopen("/proc/loadavg", "re");
  if (file == nullptr) return false;
  unsigned running = 0;
  const int found = std::fscanf(file, "%*f %*f %*f %u/", &running);
  std::fclose(file);
  return found == 1 && running > std::thread::hardware_concurrency() + 1;  // this thread runs too
}

}  // namespace switchyard::expertwire
