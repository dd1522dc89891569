#include "router/fleet/balancer.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::router {

using State = BalancerReport::State;

namespace {

// Times of `every` for which a plan that is due may be put off.
constexpr int kPutOff = 5;
// A worker is not given again what it could not load: a new placement has it forget that it failed.
constexpr absl::Duration kFailed = absl::Minutes(10);
// Routers that know nothing of each other do not hit on the same epoch.
constexpr uint64_t kEpochsApart = 10000;

}  // namespace

std::string_view Name(State state) {
  switch (state) {
    case State::kStandby:
      return "standby";
    case State::kActing:
      return "acting";
    case State::kRival:
      return "rival";
  }
  return "";
}

Balancer::Balancer(BalanceModel model, BalancerOptions options, const Fleet& fleet,
                   const LinkDispatcher& dispatcher, Hooks hooks)
    : model_(std::move(model)),
      options_(options),
      fleet_(fleet),
      dispatcher_(dispatcher),
      hooks_(std::move(hooks)),
      counted_(model_.grid.cells()),
      rows_(model_.grid.cells()) {
  thread_ = std::thread([this] { Run(); });
}

Balancer::~Balancer() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

BalancerReport Balancer::Report() const {
  absl::MutexLock lock(&mutex_);
  return report_;
}

void Balancer::Look(absl::Time now) {
  if (now < next_look_) return;
  next_look_ = now + std::min(absl::Seconds(1), options_.every / 4);
  {
    absl::MutexLock lock(&mutex_);
    if (asked_ || report_.state == State::kRival) return;
  }
  const std::vector<FleetWorker> workers = fleet_.Workers();
  NoteFailures(workers, now);
  const bool due = Due(workers, now);
  if (!hooks_.leads()) {
    // Whoever takes over begins at once.
    next_plan_ = absl::InfinitePast();
    absl::MutexLock lock(&mutex_);
    report_.state = State::kStandby;
    report_.last_look = now;
    return;
  }
  if (MeetsRival(workers)) return;
  if (!due) return End(now, "");
  if (std::string why = Hindrance(workers, now); !why.empty()) return End(now, std::move(why));
  next_plan_ = now + options_.every;
  crew_planned_ = true;
  {
    absl::MutexLock lock(&mutex_);
    crew_trimmed_ = crew_trimmed_ || std::exchange(trimmed_, false);
  }
  BalanceInput input = InputOf(workers);
  absl::MutexLock lock(&mutex_);
  report_.state = State::kActing;
  asked_ = std::move(input);
}

// Nothing was planned. Says why, unless it is only too early.
void Balancer::End(absl::Time now, std::string what) {
  absl::MutexLock lock(&mutex_);
  report_.state = State::kActing;
  report_.last_look = now;
  if (!what.empty()) report_.last = std::move(what);
}

// Whether it is time to plan, for these workers.
bool Balancer::Due(const std::vector<FleetWorker>& workers, absl::Time now) {
  Crew crew;
  for (const FleetWorker& worker : workers) crew[worker.name] = worker.incarnation;
  if (crew != crew_) {
    crew_ = std::move(crew);
    crew_since_ = now;
    crew_planned_ = crew_trimmed_ = false;
  }
  if (Overdue(now)) return true;
  if (now < crew_since_ + std::min(options_.settle, options_.every)) return false;
  return !crew_planned_ || now >= next_plan_;
}

// Neither a worker that comes and goes without end nor one that never has what it should puts off a
// plan for good.
bool Balancer::Overdue(absl::Time now) const {
  return next_plan_ != absl::InfinitePast() && now > next_plan_ + kPutOff * options_.every;
}

// Why no plan can be made now.
std::string Balancer::Hindrance(const std::vector<FleetWorker>& workers, absl::Time now) const {
  if (workers.size() < 2) return "fewer than two workers are there";
  for (const FleetWorker& worker : workers) {
    if (!worker.movable) {
      return fmt::format("worker {} is of a version that cannot be told what to hold", worker.name);
    }
  }
  // What is being loaded has its time, unless it is for others than those that are here now.
  const FleetReport report = fleet_.Report();
  if (report.moving > 0 && !report.stalled && crew_planned_ && !Overdue(now)) {
    return fmt::format("{} replicas are on their way", report.moving);
  }
  return "";
}

// What a process could not load another in its place may.
void Balancer::NoteFailures(const std::vector<FleetWorker>& workers, absl::Time now) {
  for (const FleetWorker& worker : workers) {
    Failures& failures = failures_[worker.name];
    if (failures.incarnation != worker.incarnation) failures = {worker.incarnation, {}};
    for (size_t cell = 0; cell < worker.failed.size(); ++cell) {
      if (worker.failed[cell]) failures.cells[cell] = now;
    }
  }
  for (auto& [name, failures] : failures_) {
    std::erase_if(failures.cells, [&](const auto& cell) { return now - cell.second > kFailed; });
  }
  std::erase_if(failures_, [](const auto& of) { return of.second.cells.empty(); });
}

bool Balancer::MeetsRival(const std::vector<FleetWorker>& workers) {
  if (!options_.sole) return false;
  absl::MutexLock lock(&mutex_);
  if (published_epoch_ == 0) return false;
  for (const FleetWorker& worker : workers) {
    if (worker.assigned_epoch <= published_epoch_) continue;
    report_.state = State::kRival;
    report_.last = fmt::format(
        "worker {} follows epoch {} of another router; several routers with --balance need --etcd",
        worker.name, worker.assigned_epoch);
    log::Error("balancing ends here: {}", report_.last);
    return true;
  }
  return false;
}

// Rows since the last look, with half the weight of those before; few rows wait for more.
void Balancer::TakeLoad() {
  const std::vector<uint64_t> now = dispatcher_.ExpertRows();
  uint64_t sum = 0;
  for (size_t cell = 0; cell < now.size(); ++cell) sum += now[cell] - counted_[cell];
  const auto layers = std::ranges::count(model_.grid.moe_layers, true);
  const auto experts = static_cast<double>(layers) * model_.grid.experts;
  if (static_cast<double>(sum) < options_.rows_an_expert * experts) return;
  for (size_t cell = 0; cell < now.size(); ++cell) {
    rows_[cell] = 0.5 * rows_[cell] + static_cast<double>(now[cell] - counted_[cell]);
  }
  counted_ = now;
}

BalanceInput Balancer::InputOf(const std::vector<FleetWorker>& workers) {
  TakeLoad();
  const FleetReport report = fleet_.Report();
  BalanceInput input{.rows = rows_, .epoch = report.epoch, .stalled = report.stalled};
  if (const auto followed = fleet_.Followed(); followed != nullptr && !crew_trimmed_) {
    for (const auto& worker : followed->workers()) input.followed_replicas += worker.replicas;
  }
  for (const FleetWorker& worker : workers) {
    input.epoch = std::max(input.epoch, worker.assigned_epoch);
    input.workers.push_back({.address = worker.name,
                             .node = worker.node,
                             .zone = worker.zone,
                             .memory_bytes = worker.memory_bytes,
                             .speed = std::max(1, worker.threads) * 1.0,
                             .held = worker.held,
                             .failed = {}});
    const auto known = failures_.find(worker.name);
    if (known == failures_.end()) continue;
    std::vector<bool>& failed = input.workers.back().failed;
    failed.resize(model_.grid.cells());
    for (const auto& [cell, when] : known->second.cells) failed[cell] = true;
  }
  return input;
}

void Balancer::Run() {
  absl::MutexLock lock(&mutex_);
  const auto has_work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || asked_.has_value();
  };
  while (true) {
    mutex_.Await(absl::Condition(&has_work));
    if (stopping_) return;
    const BalanceInput input = *asked_;
    mutex_.Unlock();
    PlanOne(input);
    mutex_.Lock();
    asked_.reset();
    report_.last_look = SteadyNow();
  }
}

void Balancer::PlanOne(const BalanceInput& input) {
  auto verdict = Balance(model_, input, options_.balance);
  absl::Status status = verdict.status();
  const bool move = verdict.ok() && verdict->move;
  if (move && options_.sole) {
    v1::Placement& placement = verdict->placement;
    placement.set_epoch(
        std::min(placement.epoch() + std::random_device{}() % kEpochsApart, placement::kEpochMax));
  }
  if (move) status = hooks_.publish(verdict->placement);
  absl::MutexLock lock(&mutex_);
  if (verdict.ok()) {
    report_.utilisation = verdict->utilisation;
    report_.planned = verdict->planned;
  }
  if (!status.ok()) {
    ++report_.failed;
    std::string what(status.message());
    if (what != report_.last) log::Warning("no new placement: {}", what);
    report_.last = std::move(what);
  } else if (move) {
    ++report_.published;
    report_.bytes += static_cast<uint64_t>(verdict->bytes);
    published_epoch_ = verdict->placement.epoch();
    trimmed_ = verdict->trims;
    report_.last = verdict->why;
    log::Info("placement of epoch {}: {}", published_epoch_, verdict->why);
  } else {
    ++report_.kept;
    report_.last = verdict->why;
  }
}

}  // namespace switchyard::router
