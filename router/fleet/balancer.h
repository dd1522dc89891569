// Keeps the experts balanced: looks at the load again and again, and where a placement would be
// better by enough, or must be another because workers have come or gone, makes one and has it
// published. Plans on a thread of its own: a plan of many layers takes long next to a step.
//
// Look is called by whoever calls Fleet::Look, Report by any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "router/dispatch/link_dispatcher.h"
#include "router/fleet/balance.h"
#include "router/fleet/fleet.h"

namespace switchyard::router {

struct BalancerOptions {
  absl::Duration every = absl::Minutes(1);  // between two looks at the load; above 0
  // Workers that have come or gone count once they have stayed so for so long, or for `every`.
  absl::Duration settle = absl::Seconds(30);
  // Fewer rows an expert since the last look say nothing yet; they are kept until there are more.
  double rows_an_expert = 50;
  // Nobody else makes placements: who sees one leaves off, for good.
  bool sole = false;
  BalanceOptions balance;
};

struct BalancerReport {
  enum class State {
    kStandby,  // another router does it
    kActing,
    kRival,  // another router does it too, and neither knows of an etcd that would tell them apart
  };
  State state = State::kStandby;
  absl::Time last_look = absl::InfinitePast();   // that came to an end, whatever it found
  std::string last;                              // what that was
  uint64_t published = 0, kept = 0, failed = 0;  // plans, by what became of them
  double utilisation = 0;                        // at the last plan, of the workers as they were
  double planned = 0;                            // and of what it would make of them
  uint64_t bytes = 0;                            // to be loaded for all that were published
};

// "acting", as metrics and the admin API call it.
std::string_view Name(BalancerReport::State state);
inline constexpr BalancerReport::State kBalancerStates[] = {
    BalancerReport::State::kStandby, BalancerReport::State::kActing, BalancerReport::State::kRival};

class Balancer {
 public:
  struct Hooks {
    // Whether it falls to this router.
    std::function<bool()> leads;
    // Has a placement followed by all routers; on the balancer's thread, and may take its time.
    std::function<absl::Status(const v1::Placement& placement)> publish;
  };

  // `fleet` and `dispatcher` outlive it.
  Balancer(BalanceModel model, BalancerOptions options, const Fleet& fleet,
           const LinkDispatcher& dispatcher, Hooks hooks);
  ~Balancer();  // waits for what is under way

  void Look(absl::Time now);
  BalancerReport Report() const;

 private:
  // Names and incarnations.
  using Crew = std::map<std::string, uint64_t>;
  // What a worker said that it could not load, and when it last did.
  struct Failures {
    uint64_t incarnation = 0;
    std::map<size_t, absl::Time> cells;
  };

  bool Due(const std::vector<FleetWorker>& workers, absl::Time now);
  bool Overdue(absl::Time now) const;
  std::string Hindrance(const std::vector<FleetWorker>& workers, absl::Time now) const;
  void NoteFailures(const std::vector<FleetWorker>& workers, absl::Time now);
  bool MeetsRival(const std::vector<FleetWorker>& workers);
  BalanceInput InputOf(const std::vector<FleetWorker>& workers);
  void TakeLoad();
  void End(absl::Time now, std::string what);
  void Run();
  void PlanOne(const BalanceInput& input);

  const BalanceModel model_;
  const BalancerOptions options_;
  const Fleet& fleet_;
  const LinkDispatcher& dispatcher_;
  const Hooks hooks_;

  // Of whoever calls Look.
  absl::Time next_look_ = absl::InfinitePast(), next_plan_ = absl::InfinitePast();
  Crew crew_;
  std::map<std::string, Failures> failures_;  // by worker
  absl::Time crew_since_ = absl::InfinitePast();
  bool crew_planned_ = false;      // a plan was made for it
  bool crew_trimmed_ = false;      // it was told to give up what is not needed; once is enough
  std::vector<uint64_t> counted_;  // rows by cell at the last look at the load
  std::vector<double> rows_;       // by cell, what was earlier halved each time

  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<BalanceInput> asked_ ABSL_GUARDED_BY(mutex_);  // until it is answered
  uint64_t published_epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  bool trimmed_ ABSL_GUARDED_BY(mutex_) = false;  // what was published last only gives up replicas
  BalancerReport report_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace switchyard::router
