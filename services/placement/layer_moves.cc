#include "services/placement/layer_moves.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

namespace switchyard::placement {
namespace {

struct Replica {
  int worker = -1, expert = -1;
};

// Replicas that are given up, then replicas that are made.
struct Step {
  Replica drops[2], adds[2];
  double highest = 0;  // load of the workers that it touches, afterwards
  double worth = 0;
};

// Looks through the steps that there are for the busiest worker.
class Search {
 public:
  explicit Search(const LayerState& state)
      : state_(state),
        from_(state.busiest()),
        load_(state.load(from_)),
        cheapest_(CheapestDrop()),
        roomy_(Roomy()) {}

  std::optional<Step> Best() {
    for (const int expert : state_.experts_of(from_)) {
      if (state_.MayDrop(from_, expert)) TryDrop(expert);
    }
    ForEachTarget([this](int expert, int to) { TryTo(expert, to); });
    if (best_) return best_;
    // There are many of these, so only where nothing simpler helps.
    ForEachTarget([this](int expert, int to) {
      if (!state_.full(to)) return;
      for (const int other : state_.experts_of(to)) TryMakeRoom(expert, to, other);
    });
    return best_;
  }

 private:
  template <typename Try>
  void ForEachTarget(const Try& attempt) {
    for (const int expert : state_.experts_of(from_)) {
      for (int to = 0; to < state_.workers(); ++to) {
        if (state_.load(to) < load_ && !state_.holds(to, expert)) attempt(expert, to);
      }
    }
  }

  bool has_previous() const { return !state_.problem().previous.empty(); }

  // `step` with its highest load known, if it is better than the best one and legal.
  template <typename Legal>
  void Offer(const Step& step, const Legal& legal) {
    constexpr double kLess = 1 - 1e-9;
    if (step.highest >= load_ * kLess) return;
    double loads = 0;
    for (const Replica& add : step.adds) {
      if (add.worker >= 0 && !state_.WasHere(add.worker, add.expert)) ++loads;
    }
    const double worth = (load_ - step.highest) / (has_previous() ? std::max(loads, 0.25) : 1.0);
    if (best_ && worth <= best_->worth * (1 + 1e-9)) return;
    if (!legal()) return;
    best_ = step;
    best_->worth = worth;
  }

  // The highest load of those who take over what `worker` gives up of an expert. What else changes
  // at worker a is `rows_a`.
  double WithoutReplica(int worker, int expert, int a, double rows_a) const {
    const int left = state_.replicas(expert) - 1;
    const double more = state_.share(expert, left) - state_.share(expert);
    double highest = 0;
    for (const int holder : state_.holders(expert)) {
      if (holder == worker) continue;
      highest = std::max(highest, state_.load(holder, more + (holder == a ? rows_a : 0)));
    }
    return highest;
  }

  // The replica that can be given up at the least load for the others: what a full budget pays
  // with.
  Replica CheapestDrop() const {
    Replica cheapest;
    double least = std::numeric_limits<double>::infinity();
    if (state_.replicas() < state_.problem().replicas_max) return cheapest;
    for (int expert = 0; expert < state_.problem().experts(); ++expert) {
      if (state_.replicas(expert) <= state_.problem().min_replicas) continue;
      for (const int worker : state_.holders(expert)) {
        const double highest = WithoutReplica(worker, expert, -1, 0);
        if (highest >= least || !state_.MayDrop(worker, expert)) continue;
        least = highest, cheapest = {worker, expert};
      }
    }
    return cheapest;
  }

  void TryDrop(int expert) {
    Step step{.drops = {{from_, expert}, {}}, .adds = {}};
    const double rest = state_.load(from_, -state_.share(expert));
    step.highest = std::max(rest, WithoutReplica(from_, expert, -1, 0));
    Offer(step, [] { return true; });
  }

  void TryTo(int expert, int to) {
    const double share = state_.share(expert);
    const double split = state_.share(expert, state_.replicas(expert) + 1);
    if (!state_.full(to)) {
      const Step move{.drops = {{from_, expert}, {}},
                      .adds = {{to, expert}, {}},
                      .highest = std::max(state_.load(to, share), state_.load(from_, -share))};
      Offer(move, [&] { return state_.MayTake(to, expert, from_); });
      TryReplica(expert, to, split);
    }
    for (const int other : state_.experts_of(to)) {
      TryExchange(expert, to, other);
      if (state_.replicas(other) > state_.problem().min_replicas && other != expert) {
        TryInstead(expert, to, other, split);
      }
    }
  }

  // One more replica, in a free slot.
  void TryReplica(int expert, int to, double split) {
    Step step{.drops = {}, .adds = {{to, expert}, {}}};
    const double less = split - state_.share(expert);
    if (state_.replicas() < state_.problem().replicas_max) {
      step.highest = std::max(state_.load(to, split), state_.load(from_, less));
    } else {
      const Replica& drop = cheapest_;
      if (drop.worker < 0 || drop.expert == expert) return;
      step.drops[0] = drop;
      const double more =
          state_.share(drop.expert, state_.replicas(drop.expert) - 1) - state_.share(drop.expert);
      const auto change = [&](int worker) {
        if (worker == drop.worker) return -state_.share(drop.expert);
        return state_.holds(worker, drop.expert) ? more : 0.0;
      };
      step.highest =
          std::max({state_.load(to, split + change(to)), state_.load(from_, less + change(from_)),
                    WithoutReplica(drop.worker, drop.expert, to, split)});
    }
    Offer(step, [&] { return state_.MayTake(to, expert); });
  }

  void TryExchange(int expert, int to, int other) {
    const double less = state_.share(expert) - state_.share(other);
    if (less <= 0 || state_.holds(from_, other)) return;
    const Step step{.drops = {{from_, expert}, {to, other}},
                    .adds = {{to, expert}, {from_, other}},
                    .highest = std::max(state_.load(to, less), state_.load(from_, -less))};
    Offer(step,
          [&] { return state_.MayTake(to, expert, from_) && state_.MayTake(from_, other, to); });
  }

  // A replica of `other`, which has several, gives its slot to the expert: as one more replica, or
  // moved there.
  void TryInstead(int expert, int to, int other, double split) {
    const double freed = state_.share(other);
    const double more = state_.share(other, state_.replicas(other) - 1) - freed;
    const double here = state_.holds(from_, other) ? more : 0;
    const auto offer = [&](double gained, double lost, const Step& base, int lost_at) {
      Step step = base;
      step.highest = std::max({state_.load(to, gained - freed), state_.load(from_, here - lost),
                               WithoutReplica(to, other, from_, -lost)});
      Offer(step, [&] { return state_.MayDrop(to, other) && state_.MayTake(to, expert, lost_at); });
    };
    const double share = state_.share(expert);
    offer(split, share - split, {.drops = {{to, other}, {}}, .adds = {{to, expert}, {}}}, -1);
    offer(share, share, {.drops = {{to, other}, {from_, expert}}, .adds = {{to, expert}, {}}},
          from_);
  }

  // `other` moves on to a worker with a free slot, and the expert takes its place: as one more
  // replica, or moved there.
  void TryMakeRoom(int expert, int to, int other) {
    const double share = state_.share(expert), freed = state_.share(other);
    const double split = state_.share(expert, state_.replicas(expert) + 1);
    const bool may_split = state_.replicas() < state_.problem().replicas_max;
    if (state_.load(to, std::min(split, share) - freed) >= load_) return;
    const auto offer = [&](int on, bool more) {
      const double gained = more ? split : share;
      const double less = more ? share - split : share;
      Step step{.drops = {{to, other}, {}}, .adds = {{to, expert}, {on, other}}};
      if (!more) step.drops[1] = {from_, expert};
      const bool relieved = on == from_ || (more && state_.holds(on, expert));
      step.highest =
          std::max({state_.load(to, gained - freed), state_.load(on, freed - (relieved ? less : 0)),
                    state_.load(from_, -less + (on == from_ ? freed : 0))});
      Offer(step, [&] {
        return state_.MayTake(to, expert, more ? -1 : from_) && state_.MayTake(on, other, to);
      });
    };
    for (const int on : roomy_) {
      if (on == to || state_.holds(on, other)) continue;
      if (may_split) offer(on, true);
      offer(on, false);
    }
    if (!may_split) return;
    for (const int on : state_.holders(expert)) {
      if (!state_.full(on) && !state_.holds(on, other)) offer(on, true);
    }
  }

  // Some workers with a free slot, those with the least load.
  std::vector<int> Roomy() const {
    constexpr size_t kMost = 4;
    std::vector<int> out;
    for (int w = 0; w < state_.workers(); ++w) {
      if (!state_.full(w)) out.push_back(w);
    }
    std::ranges::stable_sort(out, {}, [this](int w) { return state_.load(w); });
    if (out.size() > kMost) out.resize(kMost);
    return out;
  }

  const LayerState& state_;
  const int from_;
  const double load_;
  const Replica cheapest_;
  const std::vector<int> roomy_;
  std::optional<Step> best_;
};

int Loads(const LayerState& state, const Step& step) {
  int loads = 0;
  for (const Replica& add : step.adds) {
    if (add.worker >= 0) loads += !state.WasHere(add.worker, add.expert);
  }
  for (const Replica& drop : step.drops) {
    if (drop.worker >= 0) loads -= !state.WasHere(drop.worker, drop.expert);
  }
  return loads;
}

void Apply(const Step& step, LayerState* state) {
  for (const Replica& drop : step.drops) {
    if (drop.worker >= 0) state->Remove(drop.worker, drop.expert);
  }
  for (const Replica& add : step.adds) {
    if (add.worker >= 0) state->Add(add.worker, add.expert);
  }
}

// Applies the step if that saves loading a replica and leaves the layer balanced enough.
bool TakeIfEnough(const Step& step, double enough, LayerState* state) {
  if (Loads(*state, step) >= 0) return false;
  Apply(step, state);
  if (state->balance() >= enough) return true;
  Step back;
  std::ranges::copy(step.adds, back.drops);
  std::ranges::copy(step.drops, back.adds);
  Apply(back, state);
  return false;
}

// Something else than the replica (worker, expert), which would have to be loaded.
bool TakeBackOne(int worker, int expert, double enough, LayerState* state) {
  if (state->MayDrop(worker, expert) &&
      TakeIfEnough({.drops = {{worker, expert}, {}}, .adds = {}}, enough, state)) {
    return true;
  }
  for (int w = 0; w < state->workers(); ++w) {
    if (!state->WasHere(w, expert) || state->full(w) || !state->MayTake(w, expert, worker))
      continue;
    const Step home{.drops = {{worker, expert}, {}}, .adds = {{w, expert}, {}}};
    if (TakeIfEnough(home, enough, state)) return true;
  }
  for (int was = 0; was < state->problem().experts(); ++was) {
    if (!state->WasHere(worker, was) || state->holds(worker, was)) continue;
    if (state->MayDrop(worker, expert) && state->MayTake(worker, was)) {
      const Step instead{.drops = {{worker, expert}, {}}, .adds = {{worker, was}, {}}};
      if (TakeIfEnough(instead, enough, state)) return true;
    }
    const std::vector<int> holders(state->holders(was).begin(), state->holders(was).end());
    for (const int holder : holders) {
      if (!state->MayTake(worker, was, holder) || !state->MayTake(holder, expert, worker)) continue;
      const Step exchange{.drops = {{worker, expert}, {holder, was}},
                          .adds = {{worker, was}, {holder, expert}}};
      if (TakeIfEnough(exchange, enough, state)) return true;
    }
  }
  return false;
}

// Experts of each gate group by worker.
class GroupCounts {
 public:
  explicit GroupCounts(const LayerState& state)
      : per_group_(state.problem().experts_per_group),
        groups_(state.problem().experts() / per_group_),
        counts_(static_cast<size_t>(state.workers() * groups_)) {
    for (int w = 0; w < state.workers(); ++w) {
      for (const int expert : state.experts_of(w)) ++at(w, expert);
    }
  }
  int& at(int worker, int expert) {
    return counts_[static_cast<size_t>(worker * groups_ + expert / per_group_)];
  }
  bool same(int a, int b) const { return a / per_group_ == b / per_group_; }

 private:
  const int per_group_, groups_;
  std::vector<int> counts_;
};

// An expert at b to exchange `expert` at a for, so that both are among more of their groups; -1 if
// there is none.
int PartnerFor(const LayerState& state, double highest, GroupCounts& counts, int a, int expert,
               int b) {
  if (!state.MayTake(b, expert, a)) return -1;
  const double share = state.share(expert);
  int best = -1, most = 0;
  for (const int other : state.experts_of(b)) {
    if (counts.same(expert, other) || state.holds(a, other)) continue;
    const int gain =
        counts.at(b, expert) + counts.at(a, other) - counts.at(a, expert) - counts.at(b, other) + 2;
    const double more = share - state.share(other);
    if (gain <= most || state.load(b, more) > highest || state.load(a, -more) > highest) continue;
    if (!state.MayTake(a, other, b)) continue;
    best = other, most = gain;
  }
  return best;
}

}  // namespace

void Improve(double enough, LayerState* state) {
  const int steps = 4 * (state->problem().experts() + state->workers());
  for (int i = 0; i < steps && state->balance() < enough; ++i) {
    const std::optional<Step> step = Search(*state).Best();
    if (!step) return;
    Apply(*step, state);
  }
}

void TakeBack(double enough, LayerState* state) {
  for (bool changed = true; changed;) {
    changed = false;
    for (int w = 0; w < state->workers(); ++w) {
      const std::vector<int> experts(state->experts_of(w).begin(), state->experts_of(w).end());
      for (const int expert : experts) {
        if (state->WasHere(w, expert) || !state->holds(w, expert)) continue;
        changed |= TakeBackOne(w, expert, enough, state);
      }
    }
  }
}

void GatherGroups(double enough, LayerState* state) {
  if (state->problem().experts_per_group <= 1) return;
  GroupCounts counts(*state);
  const double highest = state->load(state->busiest()) * state->balance() / enough;
  constexpr int kRounds = 4;
  bool changed = true;
  for (int round = 0; round < kRounds && changed; ++round) {
    changed = false;
    for (int a = 0; a < state->workers(); ++a) {
      const std::vector<int> experts(state->experts_of(a).begin(), state->experts_of(a).end());
      for (const int expert : experts) {
        for (int b = 0; b < state->workers(); ++b) {
          const int other = b == a ? -1 : PartnerFor(*state, highest, counts, a, expert, b);
          if (other < 0) continue;
          --counts.at(a, expert), --counts.at(b, other);
          state->Remove(a, expert), state->Remove(b, other);
          state->Add(b, expert), state->Add(a, other);
          ++counts.at(b, expert), ++counts.at(a, other);
          changed = true;
          break;
        }
      }
    }
  }
}

}  // namespace switchyard::placement
