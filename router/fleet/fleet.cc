#include "router/fleet/fleet.h"

#include <algorithm>
#include <utility>

#include "services/base/logging.h"
#include "services/expertwire/held.h"

namespace switchyard::router {
namespace {

namespace pb = expertwire::pb;
using expertwire::ExpertLink;

// What may be over in a moment is told once it has lasted for so long: that a placement waits for
// a worker, or that workers heed a higher epoch, of which routers hear one by one.
constexpr absl::Duration kToldAfter = absl::Seconds(5);
// While it loads a worker says more often what it has.
constexpr absl::Duration kStalledAfter = absl::Seconds(30);
// A worker says within that time what has changed.
constexpr absl::Duration kHeard = absl::Seconds(1);

}  // namespace

Fleet::Fleet(const ModelSpec& spec, expertwire::LinkSet& links, LinkDispatcher& dispatcher,
             const FleetOptions& options)
    : grid_(placement::GridOf(spec)),
      links_(links),
      dispatcher_(dispatcher),
      options_(options),
      asks_(grid_.cells()),
      seen_(grid_.cells()) {}

void Fleet::Follow(placement::PlacementIndex placement) {
  absl::MutexLock lock(&mutex_);
  if (followed_ != nullptr && placement.epoch() <= followed_->epoch()) return;
  report_.epoch = placement.epoch();
  followed_ = std::make_shared<const placement::PlacementIndex>(std::move(placement));
}

FleetReport Fleet::Report() const {
  absl::MutexLock lock(&mutex_);
  FleetReport out = report_;
  out.epoch_in_use = dispatcher_.epoch_in_use();
  return out;
}

std::shared_ptr<const placement::PlacementIndex> Fleet::Followed() const {
  absl::MutexLock lock(&mutex_);
  return followed_;
}

std::vector<FleetWorker> Fleet::Workers() const {
  std::vector<FleetWorker> out;
  for (size_t i = 0; i < sides_.size(); ++i) {
    const auto hello = links_.links()[i]->peer();
    if (!sides_[i].usable || hello == nullptr) continue;
    out.push_back({.name = sides_[i].name,
                   .node = hello->node(),
                   .zone = hello->zone(),
                   .incarnation = hello->incarnation(),
                   .movable = hello->revision() > 0,
                   .memory_bytes = hello->memory_bytes(),
                   .threads = hello->runs_on().threads(),
                   .assigned_epoch = hello->assigned_epoch(),
                   .held = sides_[i].held,
                   .failed = sides_[i].failed});
  }
  return out;
}

void Fleet::Look(absl::Time now) {
  Placement followed;
  {
    absl::MutexLock lock(&mutex_);
    followed = followed_;
  }
  if (came_ == absl::InfinitePast()) came_ = now;
  const bool changed = Refresh(now);
  if (followed != nullptr) {
    Assign(*followed);
    if (followed != checked_) followed_since_ = now;
    if (changed || followed != checked_) {
      arrived_ = Arrived(*followed);
      checked_ = followed;
      nearer_ = now;
    }
    FindStalled(*followed, now);
    if (!arrived_) TellWaiting(*followed, now);
    if (followed != used_ && arrived_) {
      log::Info("placement of epoch {} is followed", followed->epoch());
      followed_since_ = now - kToldAfter;  // what it lacks for now is known
      TellWaiting(*followed, now);
      dispatcher_.Use(followed);
      used_ = followed;
      absl::MutexLock lock(&mutex_);
      ++report_.migrations;
    }
    FindAhead(*followed, now);
  }
  Acknowledge();
  if (changed || any_orphan_) FindOrphans(now);
  LetGo();
  if (any_orphan_ && options_.takeover) TakeOver(now);
}

// Lets workers give up what they hold beyond the placement. One that comes while others have not
// theirs, as after a restart of this router, waits: what it would give up may be the only copy. So
// does one that holds what those who should could not load.
void Fleet::Acknowledge() {
  const bool in_use = used_ != nullptr && used_ == checked_ && arrived_ &&
                      dispatcher_.epoch_in_use() == used_->epoch();
  for (size_t i = 0; i < sides_.size(); ++i) {
    Side& side = sides_[i];
    const uint64_t epoch = in_use ? used_->epoch() : options_.placed ? 0 : side.told;
    if (!side.serves || epoch <= side.acked || (in_use && side.spare)) continue;
    links_.links()[i]->AckEpoch(epoch);
    side.acked = epoch;
  }
}

// Says once of a placement, while it is not in use or as it comes into use, what it lacks.
void Fleet::TellWaiting(const placement::PlacementIndex& placement, absl::Time now) {
  if (now - followed_since_ < kToldAfter) return;
  absl::MutexLock lock(&mutex_);
  if (report_.waits_for.empty()) return;
  followed_since_ = absl::InfiniteFuture();
  log::Warning(
      "the placement of epoch {} waits for workers that are not connected, or could not load what "
      "they should: {}",
      placement.epoch(), fmt::join(report_.waits_for, "; "));
}

// A placement that comes no nearer, as one whose content changed while no router was there to see
// that its epoch did not.
void Fleet::FindStalled(const placement::PlacementIndex& placement, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  const bool stalled = !arrived_ && report_.moving > 0 && now - nearer_ >= kStalledAfter;
  if (stalled && !report_.stalled) {
    log::Warning(
        "the placement of epoch {} comes no nearer: workers have said nothing new for {}, and {} "
        "replicas are still to come; they heed each epoch once, so a changed placement needs a "
        "higher one",
        placement.epoch(), absl::FormatDuration(kStalledAfter), report_.moving);
  }
  report_.stalled = stalled;
}

// Workers that heed another placement, whose epoch is higher, for longer than routers take to hear
// of a new one.
void Fleet::FindAhead(const placement::PlacementIndex& placement, absl::Time now) {
  const auto ahead = [&](const Side& side) { return side.serves && side.told > placement.epoch(); };
  const int64_t count = std::count_if(sides_.begin(), sides_.end(), ahead);
  if (count == 0) {
    ahead_since_.reset();
    ahead_told_ = false;
  } else if (!ahead_since_) {
    ahead_since_ = now;
  }
  if (count > 0 && now - *ahead_since_ > kToldAfter && !std::exchange(ahead_told_, true)) {
    const auto first = std::find_if(sides_.begin(), sides_.end(), ahead);
    log::Warning(
        "the placement of epoch {} is not heeded by {} workers: {} was told one of epoch {}; give "
        "it a higher epoch",
        placement.epoch(), count, first->name, first->told);
  }
  absl::MutexLock lock(&mutex_);
  report_.ahead = count;
}

// Whether anything of a link has changed.
bool Fleet::Refresh(absl::Time now) {
  bool changed = false;
  const auto links = links_.links();
  sides_.resize(links.size());
  for (size_t i = 0; i < links.size(); ++i) {
    Side& side = sides_[i];
    const ExpertLink& link = *links[i];
    const bool stopped = link.suspect() || dispatcher_.Stuck(i);
    if (!stopped) side.silent_since.reset();
    if (stopped && !side.silent_since) side.silent_since = now;
    const bool lost = side.silent_since && now - *side.silent_since >= options_.silent_after;
    const uint64_t generation = link.generation();
    const expertwire::LinkState state = link.state();
    const bool up = state == expertwire::LinkState::kUp;
    const bool usable = up && !lost;
    if (generation == side.generation && usable == side.usable) continue;
    changed = true;
    side.generation = generation;
    side.usable = usable;
    side.drains = state == expertwire::LinkState::kDraining;
    side.serves = up || side.drains;
    side.name = link.name();
    const auto hello = link.peer();
    const uint64_t connects = link.stats().connects;
    if (hello == nullptr || !side.serves) continue;
    if (hello->incarnation() != side.incarnation || connects != side.connects) {
      side.assigned = side.acked = 0;  // what was said is forgotten there
      if (hello->incarnation() != side.incarnation) came_ = now;
      side.incarnation = hello->incarnation();
      side.connects = connects;
    }
    side.told = hello->assigned_epoch();
    Read(side, *hello);
  }
  return changed;
}

void Fleet::Read(Side& side, const pb::Hello& hello) const {
  side.held.assign(grid_.cells(), false);
  side.failed.assign(grid_.cells(), false);
  expertwire::ForEachHeld(hello.held(), grid_.layers(), grid_.experts, [&](int layer, int expert) {
    side.held[grid_.cell(layer, expert)] = true;
  });
  for (const pb::FailedExpert& failed : hello.failed()) {
    const bool ours = failed.layer() >= 0 && failed.layer() < grid_.layers() &&
                      failed.expert() < static_cast<uint32_t>(grid_.experts);
    if (ours) side.failed[grid_.cell(failed.layer(), static_cast<int>(failed.expert()))] = true;
  }
}

// A worker that the placement does not know is to hold nothing.
void Fleet::Assign(const placement::PlacementIndex& placement) {
  for (size_t i = 0; i < sides_.size(); ++i) {
    Side& side = sides_[i];
    if (!side.serves || side.assigned == placement.epoch()) continue;
    pb::Assign assign;
    assign.set_epoch(placement.epoch());
    if (const int worker = WorkerAt(placement, side.name); worker >= 0) {
      const std::vector<bool>& cells = placement.workers()[static_cast<size_t>(worker)].held;
      expertwire::AddHeld(
          grid_.layers(), grid_.experts,
          [&](int layer, int expert) { return cells[grid_.cell(layer, expert)]; },
          assign.mutable_experts());
    }
    links_.links()[i]->Assign(std::move(assign));
    side.assigned = placement.epoch();
  }
}

// Whether a worker that is to hold it by this placement has said that it cannot.
bool Fleet::Failed(const Side& side, size_t cell,
                   const placement::PlacementIndex& placement) const {
  return side.failed[cell] && side.told >= placement.epoch();
}

// "ADDRESS: could not load expert 4 of layer 1, …"; empty if it could load all that is wanted.
std::string Fleet::NotLoaded(const placement::PlacementIndex& placement, const Side& side) const {
  constexpr int kNamed = 4;
  const int worker = WorkerAt(placement, side.name);
  if (worker < 0 || !side.serves || side.held.empty()) return "";
  const std::vector<bool>& wanted = placement.workers()[static_cast<size_t>(worker)].held;
  std::string out;
  int failed = 0;
  for (size_t cell = 0; cell < wanted.size(); ++cell) {
    if (!wanted[cell] || side.held[cell] || !Failed(side, cell, placement)) continue;
    if (++failed > kNamed) continue;
    const auto experts = static_cast<size_t>(grid_.experts);
    out += fmt::format("{} expert {} of layer {}", failed == 1 ? ": could not load" : ",",
                       cell % experts, cell / experts);
  }
  if (failed > kNamed) out += fmt::format(" and {} more", failed - kNamed);
  return failed == 0 ? "" : side.name + out;
}

// Whether all workers that should hold it are there and could not load it: whoever has it besides
// stays the one to ask.
bool Fleet::AllElseFailed(const placement::PlacementIndex& placement, size_t cell) const {
  const auto experts = static_cast<size_t>(grid_.experts);
  const auto placed =
      placement.replicas(static_cast<int>(cell / experts), static_cast<int>(cell % experts));
  return !placed.empty() && std::ranges::all_of(placed, [&](uint16_t worker) {
    return std::ranges::any_of(sides_, [&](const Side& side) {
      return side.serves && !side.held.empty() &&
             side.name == placement.workers()[worker].address && Failed(side, cell, placement);
    });
  });
}

// Whether every worker that is there, one at least, has what the placement wants of it, as far as
// it ever will, and no expert would be without a holder that has one now.
bool Fleet::Arrived(const placement::PlacementIndex& placement) {
  int64_t moving = 0, serving = 0;
  std::vector<bool> placed(grid_.cells(), false), held(grid_.cells(), false);
  for (const Side& side : sides_) {
    if (!side.serves || side.held.empty()) continue;
    ++serving;
    const int worker = WorkerAt(placement, side.name);
    for (size_t cell = 0; cell < held.size(); ++cell) {
      const bool wanted =
          worker >= 0 && placement.workers()[static_cast<size_t>(worker)].held[cell];
      if (side.held[cell]) held[cell] = true;
      if (wanted && side.held[cell]) placed[cell] = true;
      if (wanted && !side.held[cell] && !Failed(side, cell, placement)) ++moving;
    }
  }
  for (Side& side : sides_) side.spare = false;
  for (size_t cell = 0; cell < held.size(); ++cell) {
    if (!held[cell] || placed[cell] || !AllElseFailed(placement, cell)) continue;
    placed[cell] = true;
    for (Side& side : sides_) side.spare |= !side.held.empty() && side.held[cell];
  }
  std::vector<std::string> waits_for;
  for (const placement::PlacementIndex::Worker& worker : placement.workers()) {
    const bool serves = std::ranges::any_of(
        sides_, [&](const Side& side) { return side.serves && side.name == worker.address; });
    if (placed != held && worker.replicas > 0 && !serves) waits_for.push_back(worker.address);
  }
  for (const Side& side : sides_) {
    if (std::string what = NotLoaded(placement, side); !what.empty()) waits_for.push_back(what);
  }
  {
    absl::MutexLock lock(&mutex_);
    report_.moving = moving;
    report_.waits_for = std::move(waits_for);
  }
  return serving > 0 && moving == 0 && placed == held;
}

void Fleet::FindOrphans(absl::Time now) {
  int64_t orphans = 0, failed = 0;
  any_orphan_ = false;
  for (int layer = 0; layer < grid_.layers(); ++layer) {
    if (!grid_.moe_layers[static_cast<size_t>(layer)]) continue;
    for (int e = 0; e < grid_.experts; ++e) {
      const size_t cell = grid_.cell(layer, e);
      const bool home = std::any_of(sides_.begin(), sides_.end(), [&](const Side& side) {
        return side.usable && !side.held.empty() && side.held[cell];
      });
      Ask& ask = asks_[cell];
      if (home) {
        ask = {};
        seen_[cell] = true;
        continue;
      }
      if (!ask.orphan) ask = {.orphan = true, .since = now};
      any_orphan_ = true;
      ++orphans;
    }
  }
  for (const Side& side : sides_)
    failed += std::count(side.failed.begin(), side.failed.end(), true);
  absl::MutexLock lock(&mutex_);
  report_.orphans = orphans;
  report_.failed_loads = failed;
}

// Workers that are about to leave wait until no router needs them any more.
void Fleet::LetGo() {
  for (size_t i = 0; i < sides_.size(); ++i) {
    const Side& side = sides_[i];
    if (!side.drains) continue;
    bool needed = false;
    for (size_t cell = 0; cell < side.held.size(); ++cell) {
      needed |= side.held[cell] && asks_[cell].orphan;
    }
    if (!needed) links_.LetGo(side.name);
  }
}

// Whether somebody has to be asked for it now.
bool Fleet::WantsHome(size_t cell, absl::Time now) {
  Ask& ask = asks_[cell];
  if (!ask.orphan || now - ask.since < options_.takeover_after) return false;
  if (!seen_[cell] && now - came_ < options_.unseen_after) return false;
  if (ask.link < 0) return true;
  const Side& asked = sides_[static_cast<size_t>(ask.link)];
  // What it said before it was asked again is heard for a moment still.
  const bool refused = asked.failed[cell] && (!ask.again || now - ask.asked > kHeard);
  // A later placement cleared it away or came before it, the process is another, or the stream
  // that it was asked over broke: it may well take it yet.
  const bool forgot = asked.incarnation != ask.incarnation || asked.connects != ask.connects ||
                      std::max(asked.told, asked.assigned) > ask.epoch;
  if (asked.usable && !refused && !forgot && now - ask.asked <= options_.patience) return false;
  if (refused || !forgot) ask.tried.emplace_back(ask.link, ask.incarnation);
  ask.link = -1;
  return true;
}

std::vector<Orphan> Fleet::Homeless(absl::Time now) {
  std::vector<Orphan> orphans;
  std::vector<uint64_t> rows;
  for (int layer = 0; layer < grid_.layers(); ++layer) {
    for (int e = 0; e < grid_.experts; ++e) {
      if (!WantsHome(grid_.cell(layer, e), now)) continue;
      if (rows.empty()) rows = dispatcher_.ExpertRows();
      orphans.push_back({layer, e, rows[grid_.cell(layer, e)]});
    }
  }
  return orphans;
}

// Those who may take over, and their links.
std::vector<Survivor> Fleet::Survivors(const std::vector<Orphan>& orphans,
                                       std::vector<size_t>* links) const {
  std::vector<Survivor> survivors;
  for (size_t i = 0; i < sides_.size(); ++i) {
    const auto hello = links_.links()[i]->peer();
    if (!sides_[i].usable || hello == nullptr || hello->expert_bytes() == 0) continue;
    Survivor survivor{.name = sides_[i].name,
                      .free_bytes = hello->free_bytes(),
                      .expert_bytes = hello->expert_bytes()};
    for (const Orphan& o : orphans) {
      const size_t cell = grid_.cell(o.layer, o.expert);
      const Ask& ask = asks_[cell];
      const std::pair asked(static_cast<int>(i), sides_[i].incarnation);
      const bool tried = std::ranges::count(ask.tried, asked) > 0;
      survivor.refuses.push_back(tried || (sides_[i].failed[cell] && !ask.again));
    }
    survivors.push_back(std::move(survivor));
    links->push_back(i);
  }
  return survivors;
}

// Everybody has refused it, or has been asked and was silent. Storage that failed all of them may
// be back later.
void Fleet::AskInVain(const Orphan& orphan, absl::Time now) {
  Ask& ask = asks_[grid_.cell(orphan.layer, orphan.expert)];
  if (now - std::max(ask.since, ask.asked) < options_.patience) return;
  ask.tried.clear();
  ask.again = true;
}

void Fleet::TakeOver(absl::Time now) {
  const std::vector<Orphan> orphans = Homeless(now);
  if (orphans.empty()) return;
  std::vector<size_t> links;
  const std::vector<Survivor> survivors = Survivors(orphans, &links);
  const auto spread = SpreadOrphans(orphans, survivors);
  uint64_t asked = 0;
  for (size_t s = 0; s < spread.size(); ++s) {
    if (spread[s].empty()) continue;
    const size_t link = links[s];
    pb::Assign assign;
    assign.set_also(true);
    assign.set_epoch(std::max(sides_[link].told, sides_[link].assigned));
    for (const size_t o : spread[s]) {
      pb::HeldExperts* one = assign.add_experts();
      one->set_layer(orphans[o].layer);
      one->add_first(static_cast<uint32_t>(orphans[o].expert));
      one->add_last(static_cast<uint32_t>(orphans[o].expert));
      Ask& ask = asks_[grid_.cell(orphans[o].layer, orphans[o].expert)];
      ask.link = static_cast<int>(link);
      ask.asked = now;
      ask.incarnation = sides_[link].incarnation;
      ask.connects = sides_[link].connects;
      ask.epoch = assign.epoch();
    }
    asked += spread[s].size();
    log::Info("worker {} takes over {} experts", survivors[s].name, spread[s].size());
    links_.links()[link]->Assign(std::move(assign));
  }
  for (const Orphan& orphan : orphans) {
    if (asks_[grid_.cell(orphan.layer, orphan.expert)].link < 0) AskInVain(orphan, now);
  }
  absl::MutexLock lock(&mutex_);
  report_.taken_over += asked;
}

}  // namespace switchyard::router
