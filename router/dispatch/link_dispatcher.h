// The Dispatcher over expert links: chooses a replica for each expert, plans which rows go where,
// sends them, and combines what comes back over the fixed tree, bit-equal for any split of the
// experts over workers, for any replica, retry or hedge.
//
// What fails is planned again on other holders (job.h); what is late is, too, and the first answer
// wins. Pairs that nobody can take, or only one who is stuck, wait for a worker up to `patience` in
// all, then their rows are lost; so are those under which stream after stream breaks. Nothing else
// of the job is touched. An expert that no worker has held for as long is gone, and
// waited for no more until one holds it.
//
// Driven by the engine thread; what says "any thread" may be called from others meanwhile.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "router/dispatch/combine.h"
#include "router/dispatch/dispatcher.h"
#include "router/dispatch/expert_view.h"
#include "router/dispatch/hints.h"
#include "router/dispatch/job.h"
#include "router/dispatch/link_health.h"
#include "router/dispatch/plan.h"
#include "router/dispatch/replica_choice.h"
#include "services/base/clock.h"
#include "services/expertwire/histogram.h"
#include "services/expertwire/link_set.h"
#include "services/kernels/thread_pool.h"
#include "services/model/spec.h"

namespace switchyard::router {

struct DispatchOptions {
  // How long the rows of an expert that no worker holds wait for one.
  absl::Duration patience = absl::ZeroDuration();
  // Whether rows that are late are sent to a replica too, at most LinkHealth's share of all.
  bool hedge = true;
  // Nothing is late before it is out for so long.
  absl::Duration hedge_after_min = absl::Milliseconds(5);
  // What is out for 20 times the 99th percentile of its size, within these bounds, is stuck: its
  // rows go to a replica whatever its worker says. One whose thread hangs in a read of a dead disk
  // says for ever that it computes, and of what queues behind that the budget pays for little.
  // While too few latencies are known it is the upper bound: weights may be cold. What nobody else
  // can compute waits for `patience` from the upper bound on.
  absl::Duration stuck_after_min = absl::Seconds(1);
  absl::Duration stuck_after_max = absl::Seconds(10);
  // A simulation has its own.
  absl::Time (*now)() = SteadyNow;
};

// Of one worker, for metrics.
struct LinkReport {
  std::string name;
  expertwire::LinkState state = expertwire::LinkState::kConnecting;
  std::string why;  // it is not up; empty if it is
  expertwire::LinkStats wire;
  uint64_t rows = 0;           // (token, expert) pairs sent
  uint64_t lost_parts = 0;     // not answered, or not with the rows asked for
  uint64_t stale_answers = 0;  // of unknown or settled calls: dropped
  uint64_t ejections = 0;
  uint64_t hints = 0;                      // experts that it was told will be wanted
  bool ejected = false;                    // left alone now where others can do its work
  expertwire::HistogramCounts latency_us;  // from sending a part to its answer
  expertwire::HistogramCounts wire_us;     // of it, neither waiting at the worker nor computing
};

// Of all workers, since start.
struct DispatchReport {
  uint64_t lost_rows = 0;
  uint64_t retried_rows = 0;  // pairs sent again because their part failed
  uint64_t hedged_rows = 0;   // pairs sent again because their part was late
  uint64_t hedges_won = 0;    // parts whose replica was faster
  uint64_t parked_rows = 0;   // pairs that had to wait for a worker
};

class LinkDispatcher : public Dispatcher {
 public:
  // `links`, which may grow and shrink, and `pool` (of the engine thread) outlive it.
  LinkDispatcher(const ModelSpec& spec, DType wire_dtype, expertwire::LinkSet& links,
                 kernels::ThreadPool& pool, const DispatchOptions& options);
  ~LinkDispatcher() override;

  MoeTicket Start(const MoeJob& job) override;
  bool Finished(MoeTicket ticket) override;
  void Abandon(MoeTicket ticket) override;
  void Wait(absl::Time until) override;
  std::span<const uint8_t> Gone(int layer) override;
  bool WantsHints() const override { return hints_.wanted(); }
  void Hint(int layer, std::span<const int32_t> experts) override;
  void CountComputed(int layer, std::span<const int32_t> experts) override;

  // ---- any thread ----
  // Empty when every expert of every MoE layer has a live worker; otherwise what is missing, a line
  // a layer ("layer 3: experts 17, 40–63 have no live worker"), and why each link is down.
  std::string Missing() const;
  std::vector<LinkReport> Links() const;
  // Whether a part was out at a link for stuck_after_max, and it has answered nothing since.
  bool Stuck(size_t link) const;
  // As ExpertView has them.
  void Use(std::shared_ptr<const placement::PlacementIndex> placement) {
    view_.Use(std::move(placement));
  }
  uint64_t epoch_in_use() const { return view_.epoch_in_use(); }
  DispatchReport Report() const;
  // Rows routed to each expert since start, [layers × experts]: once, however often they are sent.
  std::vector<uint64_t> ExpertRows() const;

 private:
  struct LinkRecord;

  // To be called before anything is planned.
  void Refresh();
  void MeetLinks();
  Standing StandingOf(size_t link, absl::Time now) const;
  void ReadStandings(absl::Time now);
  PlanInput InputOf(const Job& job) const;
  std::span<const int16_t> ChooseOwners(const Job& job);
  void PlanFirst(Job& job);
  void CountExperts(const Job& job);
  size_t PlanAgain(Job& job, size_t p, absl::Time now);
  void Track(MoeTicket ticket, Job& job, size_t first, int32_t parent, absl::Time now);
  void Send(MoeTicket ticket, Job& job, size_t p, absl::Time now);
  absl::Duration StuckAfter(uint64_t pairs) const;
  void Fail(Job& job, size_t p);
  void OnBadLink(size_t link, absl::Time now);
  void LeaveLink(Job& job, size_t p);
  void OnAnswer(int link, expertwire::Answer answer, absl::Time now);
  bool Fits(const Job& job, size_t p, const expertwire::Answer& answer) const;
  void OnDown(int link, uint64_t generation, absl::Time now);
  void Attend(MoeTicket ticket, Job& job, absl::Time now);
  void AttendPart(MoeTicket ticket, Job& job, size_t p, absl::Time now);
  void Retry(MoeTicket ticket, Job& job, size_t p, absl::Time now);
  void TryParked(MoeTicket ticket, Job& job, size_t p, absl::Time now);
  void MayHedge(MoeTicket ticket, Job& job, size_t p, absl::Time now);
  void End(MoeTicket ticket, Job& job);
  void Recycle(std::unique_ptr<Job> job);
  expertwire::RowBuffer Gather(const MoeJob& moe, const PlannedPart& part, bool may_borrow);
  void Combine(Job& job);
  void PollLinks();

  const int64_t hidden_;
  const int experts_;
  const int experts_per_group_;
  const DType dtype_;
  const DispatchOptions options_;
  const int layers_;
  expertwire::LinkSet& links_;
  kernels::ThreadPool& pool_;
  expertwire::RowBufferPool buffers_;

  ExpertView view_;
  Hints hints_;                         // as of view_
  std::vector<size_t> max_part_bytes_;  // [links]
  absl::flat_hash_map<MoeTicket, std::unique_ptr<Job>> jobs_;
  std::vector<std::unique_ptr<Job>> idle_jobs_;  // for their memory
  std::vector<expertwire::LinkSet::Event> events_;
  MoeTicket next_ticket_ = 1;
  LatencyPercentile latency_;
  HedgeBudget budget_;

  // Scratch of a planning.
  std::vector<WantedPair> wanted_;
  std::vector<uint32_t> wanted_rows_;  // [experts]
  std::vector<Standing> standings_;    // [links]
  std::vector<uint64_t> busy_, given_;
  std::vector<int16_t> owner_;  // [experts]

  LinkRecord& record(size_t link) const { return *records_[link]; }
  // The first known_ are there, for good.
  std::array<std::unique_ptr<LinkRecord>, expertwire::LinkSet::kLinksMax> records_;
  std::atomic<size_t> known_ = 0;
  std::vector<std::atomic<uint64_t>> expert_rows_;  // [layers × experts]
  std::atomic<uint64_t> lost_rows_ = 0, retried_rows_ = 0, hedged_rows_ = 0, hedges_won_ = 0,
                        parked_rows_ = 0;
};

}  // namespace switchyard::router
