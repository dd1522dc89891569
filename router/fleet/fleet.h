// A router's hand on its workers' experts: tells them what a placement wants of them, lets the
// dispatcher use it once it is there, acknowledges it so that old copies may go, and has the
// experts of lost workers taken over by the others.
//
// Follow may be called by any thread, Report too; Look by one, again and again.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "router/dispatch/link_dispatcher.h"
#include "router/fleet/takeover.h"
#include "services/expertwire/link_set.h"
#include "services/placement/document.h"

namespace switchyard::router {

struct FleetOptions {
  bool takeover = true;
  // An expert that nobody holds is given to another worker after so long, that a stream which broke
  // by chance may come back.
  absl::Duration takeover_after = absl::Milliseconds(100);
  // One that nobody has held since this router began is not lost: its worker may be starting. It is
  // given to another once no worker has come for so long.
  absl::Duration unseen_after = absl::Seconds(10);
  // A worker that is silent while calls are open is taken for lost then.
  absl::Duration silent_after = absl::Milliseconds(500);
  // A worker that was asked to take over is given so long before others are asked. When all were
  // asked in vain, they are asked again after as long.
  absl::Duration patience = absl::Seconds(10);
  // Whether a placement is or will be followed. A router that never has one lets workers go by
  // those that other routers follow.
  bool placed = true;
};

struct FleetReport {
  uint64_t epoch = 0;         // of the placement that is followed; 0: none
  uint64_t epoch_in_use = 0;  // of the one that calls are planned by
  bool stalled = false;       // what is moving has come no nearer for 30 s
  int64_t moving = 0;         // replicas that the followed placement wants and are not there yet
  int64_t orphans = 0;        // experts that no live worker holds, over all layers
  uint64_t taken_over = 0;    // experts that others were asked to take over, since start
  uint64_t migrations = 0;    // placements that came into use, since start
  int64_t failed_loads = 0;   // experts that some worker could not load
  // What the followed placement lacks: workers that are not there, where what they should hold
  // would have no other holder, by address; and who could not load what, as "ADDRESS: could not
  // load …".
  std::vector<std::string> waits_for;
  int64_t ahead = 0;  // workers that were told a placement of a higher epoch, and heed ours no more
};

// A worker that can be used now, as it describes itself.
struct FleetWorker {
  std::string name, node, zone;
  uint64_t incarnation = 0;
  bool movable = false;  // it can be told what to hold
  uint64_t memory_bytes = 0;
  int threads = 0;
  uint64_t assigned_epoch = 0;
  std::vector<bool> held;    // by cell
  std::vector<bool> failed;  // by cell: what it could not load of what it was told last
};

class Fleet {
 public:
  // `links` and `dispatcher` outlive it.
  Fleet(const ModelSpec& spec, expertwire::LinkSet& links, LinkDispatcher& dispatcher,
        const FleetOptions& options);

  // Wants this from now on, if its epoch is above the one that is followed.
  void Follow(placement::PlacementIndex placement);
  // Does what is due.
  void Look(absl::Time now);
  FleetReport Report() const;
  // As of the last Look; for whoever calls it.
  std::vector<FleetWorker> Workers() const;
  // What is wanted; null: nothing in particular.
  std::shared_ptr<const placement::PlacementIndex> Followed() const;

 private:
  using Placement = std::shared_ptr<const placement::PlacementIndex>;
  // What is known of a link, and what it was told over the stream that stands.
  struct Side {
    uint64_t generation = 0;
    uint64_t incarnation = 0, connects = 0;
    bool usable = false;  // up, and not about to leave
    bool serves = false;  // up or about to leave
    bool drains = false;  // about to leave
    std::string name;
    std::vector<bool> held, failed;  // [cells]
    uint64_t assigned = 0, acked = 0;
    uint64_t told = 0;   // the highest epoch that it was told by anybody
    bool spare = false;  // it holds what the workers that should could not load
    std::optional<absl::Time> silent_since;
  };
  // An expert without a holder.
  struct Ask {
    bool orphan = false;
    absl::Time since;
    int link = -1;  // that was asked
    absl::Time asked;
    // Then: a worker forgets what it was asked with a placement of a later epoch.
    uint64_t incarnation = 0, connects = 0, epoch = 0;
    std::vector<std::pair<int, uint64_t>> tried;  // links and incarnations that were in vain
    bool again = false;                           // all were: what had failed may be mended
  };

  bool Refresh(absl::Time now);
  void Read(Side& side, const expertwire::pb::Hello& hello) const;
  void Assign(const placement::PlacementIndex& placement);
  bool Arrived(const placement::PlacementIndex& placement);
  bool Failed(const Side& side, size_t cell, const placement::PlacementIndex& placement) const;
  std::string NotLoaded(const placement::PlacementIndex& placement, const Side& side) const;
  bool AllElseFailed(const placement::PlacementIndex& placement, size_t cell) const;
  void Acknowledge();
  void FindAhead(const placement::PlacementIndex& placement, absl::Time now);
  void FindStalled(const placement::PlacementIndex& placement, absl::Time now);
  void TellWaiting(const placement::PlacementIndex& placement, absl::Time now);
  void FindOrphans(absl::Time now);
  void TakeOver(absl::Time now);
  void LetGo();
  bool WantsHome(size_t cell, absl::Time now);
  std::vector<Orphan> Homeless(absl::Time now);
  std::vector<Survivor> Survivors(const std::vector<Orphan>& orphans,
                                  std::vector<size_t>* links) const;
  void AskInVain(const Orphan& orphan, absl::Time now);

  const placement::ExpertGrid grid_;
  expertwire::LinkSet& links_;
  LinkDispatcher& dispatcher_;
  const FleetOptions options_;

  // Of whoever calls Look.
  std::vector<Side> sides_;
  std::vector<Ask> asks_;                   // [cells]
  std::vector<bool> seen_;                  // [cells]: somebody has held it since this router began
  absl::Time came_ = absl::InfinitePast();  // the last worker; at first when this began to look
  bool any_orphan_ = false;
  Placement used_, checked_;
  bool arrived_ = false;                      // checked_, as links stood at the last change
  absl::Time nearer_ = absl::InfinitePast();  // the last change
  absl::Time followed_since_ =
      absl::InfiniteFuture();  // checked_ is; the future once that was told
  std::optional<absl::Time> ahead_since_;
  bool ahead_told_ = false;

  mutable absl::Mutex mutex_;
  Placement followed_ ABSL_GUARDED_BY(mutex_);
  FleetReport report_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace switchyard::router
