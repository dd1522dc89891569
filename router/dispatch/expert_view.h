// Whom a router asks for which expert: the map of the links as they stand, under the placement that
// was handed over last, and the experts that no worker has held for so long that none is waited
// for.
//
// Driven by the engine thread; what says "any thread" may be called from others meanwhile.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "router/dispatch/dispatcher.h"
#include "router/dispatch/expert_map.h"
#include "services/base/clock.h"
#include "services/expertwire/link_set.h"
#include "services/model/spec.h"
#include "services/placement/document.h"

namespace switchyard::router {

class ExpertView {
 public:
  // An expert is gone once nobody has held it for `patience`. `links` outlives this.
  ExpertView(const ModelSpec& spec, const expertwire::LinkSet& links, absl::Duration patience,
             absl::Time (*now)() = SteadyNow);

  // Takes what has changed since the last call: links, what they hold, the placement. Whether
  // anything has.
  bool Refresh();
  // As of the last Refresh.
  const ExpertMap& map() const { return map_; }
  // Of how many links that is made: those before this index.
  size_t links() const { return generations_.size(); }
  // The experts of a layer, [experts], with 1 where one is gone; empty where none is. Valid until
  // the next call.
  std::span<const uint8_t> Gone(int layer, absl::Time now);

  // The jobs that are planned by map(): each begins before it looks for what has changed, then is
  // planned, then over. Tickets ascend.
  void OnBegin() { open_jobs_.store(planned_jobs_ + 1); }
  void OnPlanned(MoeTicket ticket);
  void OnOver(MoeTicket ticket);

  // ---- any thread ----
  // Of holders that a placement names only those are asked from the next job on.
  void Use(std::shared_ptr<const placement::PlacementIndex> placement);
  // Of the placement by which all jobs that are open, and all that will be, are planned; 0: none.
  uint64_t epoch_in_use() const;
  // Empty when every expert of every MoE layer has a live worker, wherever it is placed; otherwise
  // what is missing, as ExpertMap has it.
  std::string Missing() const;

 private:
  bool TakePlacement();
  void TellEpoch();
  void NoteOrphans(absl::Time now);
  void FindGone(absl::Time now);

  const expertwire::LinkSet& links_;
  const std::vector<bool> moe_layers_;
  const size_t experts_;
  const absl::Duration patience_;
  absl::Time (*const now_)();

  ExpertMap map_;
  std::vector<uint64_t> generations_;  // of the links that map_ was made of

  // Handed over by Use: the engine thread takes it once it sees the epoch.
  mutable absl::Mutex mutex_;
  std::shared_ptr<const placement::PlacementIndex> next_ ABSL_GUARDED_BY(mutex_);
  std::atomic<uint64_t> next_epoch_ = 0, epoch_in_use_ = 0;
  std::atomic<size_t> open_jobs_ = 0;
  std::shared_ptr<const placement::PlacementIndex> placement_;
  MoeTicket newest_ = 0, before_placement_ = 0;  // jobs up to that one are older than placement_
  size_t planned_jobs_ = 0, older_jobs_ = 0;     // of those that are open

  std::vector<absl::Time> orphaned_;  // [layers × experts]: since then; the future: it is held
  std::vector<uint8_t> gone_;         // [layers × experts]
  std::vector<uint32_t> gone_count_;  // [layers]
  absl::Time next_gone_ = absl::InfiniteFuture();  // there may be another
};

}  // namespace switchyard::router
