// The Dispatcher over expert links: plans which rows go where, sends them, and combines what comes
// back over the fixed tree, bit-equal for any split of the experts over workers. A row whose worker
// is missing, lost, late or refuses it is lost; nothing else of the job is touched.
//
// Driven by the engine thread; what says "any thread" may be called from others meanwhile.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "router/dispatch/dispatcher.h"
#include "router/dispatch/plan.h"
#include "services/expertwire/histogram.h"
#include "services/expertwire/link_set.h"
#include "services/kernels/thread_pool.h"
#include "services/model/spec.h"

namespace switchyard::router {

// Of one worker, for metrics.
struct LinkReport {
  std::string name;
  expertwire::LinkState state = expertwire::LinkState::kConnecting;
  std::string why;  // it is not up; empty if it is
  expertwire::LinkStats wire;
  uint64_t rows = 0;                       // (token, expert) pairs sent
  uint64_t lost_parts = 0;                 // not answered, or not with the rows asked for
  uint64_t stale_answers = 0;              // of unknown or settled calls: dropped
  expertwire::HistogramCounts latency_us;  // from sending a part to its answer
  expertwire::HistogramCounts wire_us;     // of it, neither waiting at the worker nor computing
};

class LinkDispatcher : public Dispatcher {
 public:
  // `links` (all added) and `pool` (of the engine thread) outlive it.
  LinkDispatcher(const ModelSpec& spec, DType wire_dtype, expertwire::LinkSet& links,
                 kernels::ThreadPool& pool);
  ~LinkDispatcher() override;

  MoeTicket Start(const MoeJob& job) override;
  bool Finished(MoeTicket ticket) override;
  void Abandon(MoeTicket ticket) override;
  void Wait(absl::Time until) override;

  // ---- any thread ----
  // Empty when every expert of every MoE layer has a live worker; otherwise what is missing, a line
  // a layer ("layer 3: experts 17, 40–63 have no live worker"), and why each link is down.
  std::string Missing() const;
  std::vector<LinkReport> Links() const;
  // Rows sent since start, [layers × experts].
  std::vector<uint64_t> ExpertRows() const;
  uint64_t lost_rows() const { return lost_rows_.load(std::memory_order_relaxed); }

 private:
  struct Job;
  struct LinkCounters;

  void RefreshMap();
  void Send(MoeTicket ticket, Job& job);
  void Settle(Job& job, size_t part, bool lost);
  void OnAnswer(int link, expertwire::Answer answer);
  void OnDown(int link, uint64_t generation);
  void Expire(MoeTicket ticket, Job& job);
  void CancelOpen(MoeTicket ticket, const Job& job);
  void Recycle(std::unique_ptr<Job> job);
  expertwire::RowBuffer Gather(const MoeJob& moe, const PlannedPart& part, bool may_borrow);
  void Combine(Job& job);
  std::string WorkersOfLost(const Job& job) const;  // for a log line; empty where none was asked
  bool Whole(const Job& job, int64_t token) const;
  void CombineToken(const Job& job, int64_t token) const;
  void CombineSlice(const Job& job, int64_t token, int64_t from, int64_t n) const;
  void PollLinks();

  const int64_t hidden_;
  const int experts_;
  const int top_k_;
  const int experts_per_group_;
  const DType dtype_;
  const std::vector<bool> moe_layers_;
  expertwire::LinkSet& links_;
  kernels::ThreadPool& pool_;
  expertwire::RowBufferPool buffers_;

  ExpertMap map_;
  std::vector<uint64_t> generations_;   // of the links that map_ was made of
  std::vector<size_t> max_part_bytes_;  // [links]
  absl::flat_hash_map<MoeTicket, std::unique_ptr<Job>> jobs_;
  std::vector<std::unique_ptr<Job>> idle_jobs_;  // for their memory
  std::vector<expertwire::LinkSet::Event> events_;
  MoeTicket next_ticket_ = 1;

  std::vector<std::unique_ptr<LinkCounters>> counters_;  // [links]
  std::vector<std::atomic<uint64_t>> expert_rows_;       // [layers × experts]
  std::atomic<uint64_t> lost_rows_ = 0;
};

}  // namespace switchyard::router
