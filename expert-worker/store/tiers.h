// Which of the experts that are held lie in memory, where there is not room for all: those that are
// used most, by counts that halve with time. The others stay mapped and are read when they are
// wanted: before a computation, which waits (a miss), or beforehand, when a call that waits or a
// router's hint names them. What is read beforehand stays until it is used, what was only hinted
// until its layer is computed; it makes room for what is computed with, but for no other hint.
//
// Of the host's memory this is what was asked of the kernel: to read pages, and to let them go. It
// is the page cache's, so what was let go may still be there, which costs nobody anything.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "expert-worker/store/expert_memory.h"
#include "expert-worker/store/expert_store.h"

namespace switchyard::worker {

// The base-2 logarithm of a count of uses of which each halves with time, at the time of the last
// one: two of them compare as their counts do now. `heat` as it was, `when` in half-lives.
double HeatAfterUse(double heat, double when);

struct TierOptions {
  uint64_t memory_bytes = 0;  // that experts may take; 0: as much as they do
  absl::Duration half_life = absl::Seconds(30);
  absl::Duration hint_life = absl::Seconds(1);  // what was read beforehand is kept no longer
};

struct TierCounters {
  uint64_t hits = 0, misses = 0;  // segments whose expert was, or was not, in memory
  uint64_t stall_us = 0;          // computations waited for misses
  uint64_t promotions = 0, demotions = 0;
  uint64_t prefetched = 0;  // of the promotions, those that nobody waited for
  uint64_t bytes_promoted = 0;
  uint64_t to_read = 0;  // asked for beforehand and not read yet, now
  int64_t resident = 0;  // experts in memory, now
  uint64_t resident_bytes = 0;
};

class Tiers {
 public:
  using Clock = std::chrono::steady_clock;  // uses of before a jump of the wall clock still count

  // `store` and `memory` outlive it. What is held now is taken to be in memory as far as there is
  // room (Fill, where it is not).
  Tiers(const ExpertStore& store, ExpertMemory& memory, const TierOptions& options);
  ~Tiers();

  // ---- the thread that computes ----
  // A computation begins. What it uses stays in memory until its end, even if that is more than
  // there is room for.
  void Begin(Clock::time_point now);
  void End();
  // The expert's weights, in memory; null if it is not held. An error where it cannot be read.
  absl::StatusOr<const ExpertWeights*> Use(int64_t layer, int64_t expert);

  // ---- any thread ----
  // Whether there is less room than is held.
  bool tight() const {
    return options_.memory_bytes > 0 && memory_.held_bytes() > options_.memory_bytes;
  }
  // It will be used soon: read in the background.
  void Want(int64_t layer, int64_t expert) { Ask(layer, expert, /*sure=*/true); }
  // It probably will, when its layer is computed next.
  void Hint(int64_t layer, int64_t expert) { Ask(layer, expert, /*sure=*/false); }
  TierCounters counters() const;
  uint64_t memory_bytes() const { return options_.memory_bytes; }

  // ---- whoever loads ----
  // Comes: in memory if there is room, and else not, as nobody has used it yet.
  void OnLoaded(ExpertId id);
  void OnRemoved(ExpertId id);
  // Lets everything that is not counted as in memory go from there.
  void EvictRest();
  // Brings everything that is counted as in memory there. `progress` may be null.
  absl::Status Fill(const std::function<void(uint64_t done, uint64_t total)>& progress);

 private:
  enum class Tier : uint8_t { kMapped, kComing, kMemory };
  static constexpr uint64_t kAnyRound = UINT64_MAX;
  struct Slot {
    std::atomic<Tier> tier = Tier::kMapped;
    std::atomic<double> heat = -1e300;
    std::atomic<uint64_t> used_in = 0;                 // the last computation
    std::atomic<int64_t> wanted_until_us = INT64_MIN;  // of Clock, and
    std::atomic<uint64_t> wanted_in = kAnyRound;       // only in this round of its layer
    std::atomic<bool> asked = false;                   // is in asked_
  };

  size_t Index(ExpertId id) const {
    return static_cast<size_t>(id.layer) * static_cast<size_t>(store_.experts()) +
           static_cast<size_t>(id.expert);
  }
  ExpertId IdOf(size_t index) const {
    const auto experts = static_cast<size_t>(store_.experts());
    return {static_cast<int32_t>(index / experts), static_cast<int32_t>(index % experts)};
  }
  // Reads it, after making room: with `must` even where there is none. Whether it did.
  absl::StatusOr<bool> Promote(size_t index, uint64_t bytes, bool must);
  void Reserve(size_t index, uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What is read is kept or, where it was removed meanwhile or could not be read, let go.
  void Settle(size_t index, bool read);
  // Takes the coldest that nobody needs off the list until `bytes` fit; whether they do. With
  // `must` also what is wanted, where nothing else is left.
  bool MakeRoom(uint64_t bytes, bool must, std::vector<size_t>* victims)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The coldest that nobody needs, by its place in residents_; that of its end if there is none.
  size_t Coldest(bool wanted_too) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Wanted(size_t index, int64_t now_us) const;
  void Ask(int64_t layer, int64_t expert, bool sure);
  void Leave(size_t place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  size_t PlaceOf(size_t index) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EvictAll(const std::vector<size_t>& victims);
  void Prefetch();

  const ExpertStore& store_;
  ExpertMemory& memory_;
  const TierOptions options_;
  const std::unique_ptr<Slot[]> slots_;                    // [layers, experts]
  const std::unique_ptr<std::atomic<uint64_t>[]> rounds_;  // [layers]: computations of each
  std::atomic<uint64_t> computation_ = 1;
  double now_ = 0;      // of the computation, in half-lives
  int64_t layer_ = -1;  // of the computation, once it has used anything

  mutable absl::Mutex mutex_;
  struct Resident {
    size_t index = 0;
    uint64_t bytes = 0;
  };
  std::vector<Resident> residents_ ABSL_GUARDED_BY(mutex_);  // in no order
  uint64_t resident_bytes_ ABSL_GUARDED_BY(mutex_) = 0;      // with what is on its way
  std::deque<size_t> asked_ ABSL_GUARDED_BY(mutex_);         // hints behind what calls name
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;             // one that was asked for
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<uint64_t> hits_ = 0, misses_ = 0, stall_us_ = 0, promotions_ = 0, demotions_ = 0,
                        prefetched_ = 0, bytes_promoted_ = 0;
  std::thread prefetcher_;  // where memory is bounded
};

}  // namespace switchyard::worker
