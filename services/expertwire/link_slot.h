// The place of one removable link in a LinkSet: its index never changes, the link in it may. A link
// that is removed takes no new calls; it leaves once its open ones are answered or its patience has
// passed (they are lost then, by a LinkDown). The empty slot is kGone until another link moves in.
//
// What ExpertLink promises of threads holds here too. Its address outlives the LinkSet's users, so
// whoever looks at a slot while its link is exchanged sees the old one or the new one.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "services/expertwire/expert_link.h"

namespace switchyard::expertwire {

class GrpcLink;

class LinkSlot final : public ExpertLink {
 public:
  // A link and the lanes that it is made of.
  struct Tenant {
    std::shared_ptr<ExpertLink> link;
    std::vector<GrpcLink*> lanes;
    const std::string* name = nullptr;  // outlives the slot
  };

  explicit LinkSlot(Tenant tenant) { MoveIn(std::move(tenant)); }

  const std::string& name() const override { return *name_.load(std::memory_order_acquire); }
  LinkState state() const override;
  absl::Status why() const override;
  std::shared_ptr<const pb::Hello> peer() const override;
  uint64_t generation() const override;
  LinkStats stats() const override;
  bool suspect() const override;

  size_t max_part_bytes() const override;
  bool borrows_rows() const override { return false; }
  absl::Status Send(Call part) override;
  void Cancel(uint64_t call_id, uint32_t attempt) override;
  bool Computing(uint64_t call_id, uint32_t attempt) override;
  void Assign(pb::Assign assign) override;
  void AckEpoch(uint64_t epoch) override;
  void Prefetch(pb::Prefetch prefetch) override;
  bool Poll(std::vector<LinkEvent>* events) override;

  // ---- with the mutex of the loop held ----
  bool serving() const { return phase() == Phase::kServing; }
  bool leaving() const { return phase() == Phase::kLeaving; }
  bool empty() const { return phase() == Phase::kEmpty; }
  void MoveIn(Tenant tenant);
  // Calls that are still open at `lost_at` are lost.
  void Leave(absl::Time lost_at);
  void Stay();  // what was leaving() serves again
  // Time passes. Returns what has left, to be destroyed without the mutex.
  Tenant Tick(absl::Time now);
  const std::vector<GrpcLink*>& lanes() const { return lanes_; }

 private:
  enum class Phase : uint8_t { kServing, kLeaving, kStopping, kEmpty };
  Phase phase() const { return phase_.load(std::memory_order_acquire); }
  void SetPhase(Phase phase);
  std::shared_ptr<ExpertLink> link() const {
    absl::MutexLock lock(&link_mutex_);
    return link_;
  }

  std::vector<GrpcLink*> lanes_;  // under the loop's mutex
  absl::Time lost_at_;            // under the loop's mutex

  std::atomic<const std::string*> name_ = nullptr;
  std::atomic<Phase> phase_ = Phase::kEmpty;
  mutable absl::Mutex link_mutex_;  // held for the pointers alone
  std::shared_ptr<ExpertLink> link_ ABSL_GUARDED_BY(link_mutex_);
  // Added to the link's generation, so that the slot's never falls and no two links share one.
  uint64_t past_ ABSL_GUARDED_BY(link_mutex_) = 1;
};

}  // namespace switchyard::expertwire
