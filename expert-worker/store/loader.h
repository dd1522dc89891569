// The thread that brings experts in and lets them go, as Holdings says, beside the computing.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "expert-worker/store/expert_store.h"
#include "expert-worker/store/holdings.h"
#include "expert-worker/store/tiers.h"
#include "services/base/clock.h"

namespace switchyard::worker {

struct LoaderOptions {
  uint64_t bytes_per_s = 0;   // of what no router waits for; 0: as fast as it can be read
  bool check_weights = true;  // for NaN and infinity
  // Takes out of a list of experts those that waiting calls name.
  std::function<void(std::vector<ExpertId>*)> spare_named;
};

struct LoaderCounters {
  uint64_t loaded = 0, failed = 0, removed = 0;
  uint64_t bytes = 0;  // read, also of what failed
};

class Loader {
 public:
  // All outlive it.
  Loader(ExpertStore& store, Holdings& holdings, Tiers& tiers, LoaderOptions options);
  ~Loader();

  // ---- any thread ----
  // Holdings may have something new to do.
  void Wake();
  // An expert that is held cannot be read any more: from now on it is not said to be held, whatever
  // the thread is at.
  void OnLost(ExpertId id, const absl::Status& why);
  LoaderCounters counters() const;

 private:
  void Run();
  void TakeLost();
  // Whether some stay because calls name them.
  bool Remove();
  void Load(const Holdings::Next& next);
  // Sleeps as the rate demands; false once it stops.
  bool Pace(uint64_t bytes);
  bool stopping() const {
    absl::MutexLock lock(&mutex_);
    return stopping_;
  }

  ExpertStore& store_;
  Holdings& holdings_;
  Tiers& tiers_;
  const LoaderOptions options_;
  std::chrono::steady_clock::time_point due_;  // when the rate allows to go on; of the thread

  mutable absl::Mutex mutex_;
  SteadyCondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<ExpertId> lost_ ABSL_GUARDED_BY(mutex_);  // and still in the store
  std::atomic<uint64_t> loaded_ = 0, failed_ = 0, removed_ = 0, bytes_ = 0;
  std::thread thread_;
};

}  // namespace switchyard::worker
