// What this worker is wanted to hold and what it holds: the placements that routers assign, what is
// still to be loaded and in which order, and when something may go. It loads nothing itself.
//
// An expert that the newest epoch does not want goes once every connected router, one at least, has
// acknowledged that epoch: without one nobody says that it is held elsewhere.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "expert-worker/store/expert_store.h"
#include "services/expertwire/frame.h"

namespace switchyard::worker {

class Holdings {
 public:
  // What `store` holds now is what epoch 0 wants. It outlives this.
  explicit Holdings(const ExpertStore& store);

  // As expert.proto has it; experts that the model has not are failed ones.
  void Assign(const expertwire::pb::Assign& assign);
  void OnRouter(const void* router);
  void OnAck(const void* router, uint64_t epoch);
  void Forget(const void* router);

  // ---- whoever loads ----
  // What to load next, which is then on its way. Urgent: nobody else may hold it.
  struct Next {
    ExpertId id;
    bool urgent = false;
  };
  std::optional<Next> NextToLoad();
  bool UrgentWaits() const;
  void OnLoaded(ExpertId id);
  void OnFailed(ExpertId id, const std::string& why);
  // What was held and cannot be read any more. False if it was not; otherwise OnRemoved follows,
  // and only then it is loaded again, if somebody asks for that.
  bool OnLost(ExpertId id, const std::string& why);
  // What is held and may go, as far as routers are concerned.
  std::vector<ExpertId> MayGo() const;
  // False if it may not go any more. Otherwise it is not said to be held from now on, and OnRemoved
  // follows.
  bool BeginRemoval(ExpertId id);
  void OnRemoved(ExpertId id);

  // Whether it is wanted and not there yet.
  bool Coming(int64_t layer, int64_t expert) const;
  // Changes with what FillHolds says.
  uint64_t version() const { return version_.load(std::memory_order_acquire); }
  // Everything but the bytes that are free.
  void FillHolds(expertwire::pb::Holds* holds) const;
  uint64_t epoch() const;
  uint64_t assigned_epoch() const;
  uint64_t to_load() const;  // wanted, and neither held nor failed

 private:
  enum class State : uint8_t {
    kAbsent,
    kWaits,    // in background_
    kUrgent,   // in urgent_
    kLoading,  // by whoever loads
    kHeld,
    kLeaving,
    kFailed,
  };
  struct Slot {
    State state = State::kAbsent;
    bool wanted = false;  // by the set of the epoch or in addition
    bool placed = false;  // by the set of the epoch
  };

  bool InRange(ExpertId id) const {
    return id.layer >= 0 && id.layer < layers_ && id.expert >= 0 && id.expert < experts_;
  }
  Slot& At(ExpertId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return slots_[Index(id)]; }
  size_t Index(ExpertId id) const {
    return static_cast<size_t>(id.layer) * static_cast<size_t>(experts_) +
           static_cast<size_t>(id.expert);
  }
  std::vector<ExpertId> ExpertsOf(const expertwire::pb::Assign& assign)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Place(const expertwire::pb::Assign& assign) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Add(const expertwire::pb::Assign& assign) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Fail(ExpertId id, State state, std::string why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Queue(ExpertId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Unwanted(const Slot& slot) const { return slot.state == State::kHeld && !slot.wanted; }
  bool FencePassed() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Something that FillHolds says has changed.
  void Changed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::optional<ExpertId> Take(std::deque<ExpertId>& queue, State state)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const ExpertStore& store_;
  const int layers_;
  const int experts_;

  mutable absl::Mutex mutex_;
  std::vector<Slot> slots_ ABSL_GUARDED_BY(mutex_);  // [layers, experts]
  // An entry counts while its slot is in the state of the queue.
  std::deque<ExpertId> urgent_ ABSL_GUARDED_BY(mutex_), background_ ABSL_GUARDED_BY(mutex_);
  int64_t missing_ ABSL_GUARDED_BY(mutex_) = 0;  // placed and not held
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;   // the last one of which all is held
  uint64_t assigned_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::pair<int32_t, int32_t>, std::string> failed_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<const void*, uint64_t> acks_ ABSL_GUARDED_BY(mutex_);  // of whom is connected
  std::atomic<uint64_t> version_ = 1;
};

}  // namespace switchyard::worker
