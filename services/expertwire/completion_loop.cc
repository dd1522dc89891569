#include "services/expertwire/completion_loop.h"

#include <sched.h>

#include <cstdio>
#include <thread>
#include <utility>

namespace switchyard::expertwire {
namespace {

constexpr int kEventsAPoll = 256;
constexpr int kPauses = 20;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

CompletionLoop::CompletionLoop(std::unique_ptr<grpc::CompletionQueue> queue)
    : queue_(std::move(queue)) {}

CompletionLoop::~CompletionLoop() {
  absl::MutexLock lock(&mutex_);
  Close();
}

bool CompletionLoop::Poll() { return Sleep(absl::InfinitePast()); }

bool CompletionLoop::Sleep(absl::Time until) {
  bool any = false;
  for (int i = 0; i < kEventsAPoll; ++i) {
    void* tag = nullptr;
    bool ok = false;
    const gpr_timespec deadline =
        any || until == absl::InfinitePast()
            ? gpr_time_0(GPR_CLOCK_REALTIME)
            : gpr_time_from_nanos(absl::ToUnixNanos(until), GPR_CLOCK_REALTIME);
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
  if (turns_ == 0) start_ = absl::Now();
  if (++turns_ <= kPauses && !crowded_) {
    Pause();
    return true;
  }
  sched_yield();
  return absl::Now() - start_ < yield_for_;
}

bool MachineIsCrowded() {
  std::FILE* file = std::fopen("/proc/loadavg", "re");
  if (file == nullptr) return false;
  unsigned running = 0;
  const int found = std::fscanf(file, "%*f %*f %*f %u/", &running);
  std::fclose(file);
  return found == 1 && running > std::thread::hardware_concurrency();
}

}  // namespace switchyard::expertwire
