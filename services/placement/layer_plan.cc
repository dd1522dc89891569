#include "services/placement/layer_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>
#include <queue>

#include "services/base/status.h"
#include "services/placement/layer_moves.h"

namespace switchyard::placement {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A plan that is this close to even is not improved further.
constexpr double kEvenEnough = 0.9995;

// Part of the balance that a fresh plan gives up for gate groups that lie together.
constexpr double kForGroups = 0.002;

// Puts one more replica of `expert` where others must make room: along the shortest chain of
// replicas, each of which moves into the next one's place. False if there is no such chain.
bool AddByShifting(int expert, bool may_crowd, LayerState* state) {
  struct Reached {
    int from = -1, moved = -1;  // which worker sheds which expert to this one
    bool seen = false;
  };
  std::vector<Reached> reached(static_cast<size_t>(state->workers()));
  std::queue<int> next;
  for (int w = 0; w < state->workers(); ++w) {
    const bool may = may_crowd ? !state->holds(w, expert) && state->Allowed(w, expert)
                               : state->MayTake(w, expert);
    if (!may || state->problem().workers[static_cast<size_t>(w)].slots == 0) continue;
    reached[static_cast<size_t>(w)] = {-1, expert, true};
    next.push(w);
  }
  while (!next.empty()) {
    int at = next.front();
    next.pop();
    if (state->full(at)) {
      for (const int shed : state->experts_of(at)) {
        for (int to = 0; to < state->workers(); ++to) {
          if (reached[static_cast<size_t>(to)].seen || !state->MayTake(to, shed, at)) continue;
          reached[static_cast<size_t>(to)] = {at, shed, true};
          next.push(to);
        }
      }
      continue;
    }
    for (; at >= 0; at = reached[static_cast<size_t>(at)].from) {
      const Reached& step = reached[static_cast<size_t>(at)];
      if (step.from >= 0) state->Remove(step.from, step.moved);
      state->Add(at, step.moved);
    }
    return true;
  }
  return false;
}

// One more replica where it adds least to the load. False if no slot can be had.
bool AddSomewhere(int expert, LayerState* state) {
  const double share = state->share(expert, state->replicas(expert) + 1);
  int best = -1;
  for (int w = 0; w < state->workers(); ++w) {
    if (state->full(w) || !state->MayTake(w, expert)) continue;
    // What was there before need not be loaded.
    const auto rank = [&](int worker) {
      return std::pair(!state->WasHere(worker, expert), state->load(worker, share));
    };
    if (best < 0 || rank(w) < rank(best)) best = w;
  }
  if (best < 0) return AddByShifting(expert, false, state) || AddByShifting(expert, true, state);
  state->Add(best, expert);
  return true;
}

// How many replicas each expert gets: the least, and of what is left one more for whoever has the
// most rows a replica.
std::vector<int> ReplicasWanted(const LayerProblem& problem) {
  int slots = 0, workers = 0;
  for (const LayerProblem::Worker& worker : problem.workers) {
    slots += worker.slots;
    workers += worker.slots > 0;
  }
  std::vector<int> wanted(problem.load.size(), problem.min_replicas);
  using Entry = std::pair<double, int>;  // rows a replica, and minus the expert
  std::priority_queue<Entry> heaviest;
  for (int e = 0; e < problem.experts(); ++e) {
    heaviest.push({problem.load[static_cast<size_t>(e)] / problem.min_replicas, -e});
  }
  int left = std::min(problem.replicas_max, slots) - problem.experts() * problem.min_replicas;
  while (left > 0 && !heaviest.empty()) {
    const int expert = -heaviest.top().second;
    heaviest.pop();
    int& replicas = wanted[static_cast<size_t>(expert)];
    if (replicas >= workers) continue;
    ++replicas, --left;
    heaviest.push({problem.load[static_cast<size_t>(expert)] / replicas, -expert});
  }
  return wanted;
}

absl::Status NoRoom(int expert, const LayerState& state) {
  return ResourceExhausted("expert {} finds room for {} of {} replicas", expert,
                           state.replicas(expert), state.problem().min_replicas);
}

// Takes everything off some workers and deals it out among them anew, heaviest first, each replica
// to the worker that is least loaded with it; where it was before is preferred if that makes little
// difference. Other workers stay as they are.
class Dealer {
 public:
  Dealer(std::vector<bool> again, LayerState* state)
      : state_(*state),
        again_(std::move(again)),
        wanted_(ReplicasWanted(state->problem())),
        rows_(again_.size()) {
    const LayerProblem& problem = state_.problem();
    double rows = 0, speeds = 0;
    for (const double of_expert : problem.load) rows += of_expert;
    for (const LayerProblem::Worker& worker : problem.workers) speeds += worker.speed;
    constexpr double kLittle = 0.03;  // of the mean load
    little_ = kLittle * rows / speeds;
  }

  absl::Status Run() {
    for (int w = 0; w < state_.workers(); ++w) {
      if (!again_[Ix(w)]) continue;
      slots_ += state_.problem().workers[Ix(w)].slots;
      while (!state_.experts_of(w).empty()) state_.Remove(w, state_.experts_of(w).back());
    }
    std::vector<int> order(wanted_.size());
    std::iota(order.begin(), order.end(), 0);
    for (const int expert : order) {
      needed_ += std::max(state_.problem().min_replicas - state_.replicas(expert), 0);
    }
    std::ranges::stable_sort(order, std::greater<>(), [this](int e) { return Share(e); });
    for (const int expert : order) SY_RETURN_IF_ERROR(DealOut(expert));
    return absl::OkStatus();
  }

 private:
  static size_t Ix(int i) { return static_cast<size_t>(i); }
  // As if all replicas were there already.
  double Share(int expert) const { return state_.share(expert, wanted_[Ix(expert)]); }

  absl::Status DealOut(int expert) {
    const LayerProblem& problem = state_.problem();
    while (state_.replicas(expert) < wanted_[Ix(expert)]) {
      const bool must = state_.replicas(expert) < problem.min_replicas;
      if (!must && (state_.replicas() >= problem.replicas_max || slots_ <= needed_)) break;
      const int worker = LeastLoadedWith(expert);
      if (worker >= 0) {
        state_.Add(worker, expert);
        rows_[Ix(worker)] += Share(expert);
      } else if (!must) {
        break;
      } else if (!AddByShifting(expert, false, &state_) && !AddByShifting(expert, true, &state_)) {
        return NoRoom(expert, state_);
      }
      --slots_, needed_ -= must;
    }
    return absl::OkStatus();
  }

  int LeastLoadedWith(int expert) const {
    int best = -1;
    double least = kInfinity;
    for (int w = 0; w < state_.workers(); ++w) {
      if (!again_[Ix(w)] || state_.full(w)) continue;
      const double load = (rows_[Ix(w)] + Share(expert)) / state_.speed(w) -
                          (state_.WasHere(w, expert) ? little_ : 0);
      if (load < least && state_.MayTake(w, expert)) best = w, least = load;
    }
    return best;
  }

  LayerState& state_;
  const std::vector<bool> again_;  // by worker
  const std::vector<int> wanted_;  // replicas by expert
  std::vector<double> rows_;       // dealt to each worker
  double little_ = 0;
  int slots_ = 0, needed_ = 0;  // left, and of those the ones that the least replicas need
};

// Of `worker`, what is missed least: of experts with replicas to spare first.
int LeastMissed(const LayerState& state, int worker) {
  int best = -1;
  const auto rank = [&](int e) {
    return std::tuple(state.replicas(e) <= state.problem().min_replicas, state.share(e));
  };
  for (const int expert : state.experts_of(worker)) {
    if (best < 0 || rank(expert) < rank(best)) best = expert;
  }
  return best;
}

// What of the previous placement is still possible.
void TakePrevious(LayerState* state) {
  const LayerProblem& problem = state->problem();
  for (int w = 0; w < state->workers(); ++w) {
    for (int e = 0; e < problem.experts(); ++e) {
      if (state->WasHere(w, e) && state->Allowed(w, e)) state->Add(w, e);
    }
  }
  for (int w = 0; w < state->workers(); ++w) {
    const auto slots = static_cast<size_t>(problem.workers[static_cast<size_t>(w)].slots);
    while (state->experts_of(w).size() > slots) state->Remove(w, LeastMissed(*state, w));
  }
  // Room for what Complete adds.
  int surplus = -problem.replicas_max;
  for (int e = 0; e < problem.experts(); ++e) {
    surplus += std::max(state->replicas(e), problem.min_replicas);
  }
  for (; surplus > 0; --surplus) {
    int worker = -1, expert = -1;
    double least = kInfinity;
    for (int e = 0; e < problem.experts(); ++e) {
      if (state->replicas(e) <= problem.min_replicas) continue;
      if (const double after = state->share(e, state->replicas(e) - 1); after < least) {
        least = after, expert = e;
      }
    }
    if (expert < 0) return;
    for (const int holder : state->holders(expert)) {
      if (worker < 0 || state->load(holder) > state->load(worker)) worker = holder;
    }
    state->Remove(worker, expert);
  }
}

// Every expert gets its least number of replicas.
absl::Status Complete(LayerState* state) {
  std::vector<int> order(state->problem().load.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::greater<>(),
                           [&](int e) { return state->problem().load[static_cast<size_t>(e)]; });
  for (const int expert : order) {
    while (state->replicas(expert) < state->problem().min_replicas) {
      if (!AddSomewhere(expert, state)) return NoRoom(expert, *state);
    }
  }
  return absl::OkStatus();
}

// Moves one replica of a crowded expert to a node or zone that has none; another makes room if it
// must.
bool MoveApart(int expert, LayerState* state) {
  const std::vector<int> holders(state->holders(expert).begin(), state->holders(expert).end());
  int best_from = -1, best_to = -1, best_other = -1;
  bool best_drops = false;
  double least = kInfinity;
  const auto offer = [&](int from, int to, int other, bool drops, double load) {
    if (load >= least) return;
    least = load, best_from = from, best_to = to, best_other = other, best_drops = drops;
  };
  for (const int from : holders) {
    for (int to = 0; to < state->workers(); ++to) {
      if (state->holds(to, expert) || !state->Allowed(to, expert) ||
          state->CrowdingAfter(expert, to, from) >= state->crowding(expert)) {
        continue;
      }
      const double share = state->share(expert);
      if (!state->full(to)) offer(from, to, -1, false, state->load(to, share));
      for (const int other : state->experts_of(to)) {
        const double more = share - state->share(other);
        if (state->MayDrop(to, other)) offer(from, to, other, true, state->load(to, more));
        if (!state->MayTake(from, other, to)) continue;
        offer(from, to, other, false, std::max(state->load(to, more), state->load(from, -more)));
      }
    }
  }
  if (best_from < 0) return false;
  state->Remove(best_from, expert);
  if (best_other >= 0) state->Remove(best_to, best_other);
  if (best_other >= 0 && !best_drops) state->Add(best_from, best_other);
  state->Add(best_to, expert);
  return true;
}

void SpreadApart(LayerState* state) {
  for (int expert = 0; expert < state->problem().experts(); ++expert) {
    while (state->crowding(expert) > 0 && MoveApart(expert, state)) {
    }
  }
}

// What can be had where nothing lies yet.
struct FreshPlan {
  LayerState state;
  double dealt = 0;  // balance before it was improved
};

absl::StatusOr<FreshPlan> Fresh(const LayerProblem& problem) {
  FreshPlan plan{LayerState(problem)};
  SY_RETURN_IF_ERROR(Dealer(std::vector<bool>(problem.workers.size(), true), &plan.state).Run());
  SpreadApart(&plan.state);
  plan.dealt = plan.state.balance();
  Improve(kEvenEnough, &plan.state);
  return plan;
}

// Replicas that must be loaded.
int Loads(const LayerState& state) {
  int loads = 0;
  for (int w = 0; w < state.workers(); ++w) {
    for (const int expert : state.experts_of(w)) loads += !state.WasHere(w, expert);
  }
  return loads;
}

// Single steps alone, and after the most and the least loaded workers, few or many of them, were
// dealt out anew: whichever way gets from `start` to the balance `enough` with the fewest loads.
// The more of a worker one expert is, the more steps the last of the balance takes, and the more
// often a way that begins with more loads ends with less. None if no way gets there.
std::optional<LayerState> FewestLoads(double enough, const LayerState& start) {
  std::optional<LayerState> best;
  const auto try_from = [&](LayerState state) {
    Improve(enough, &state);
    if (state.balance() < enough) return;
    TakeBack(enough, &state);
    if (!best || Loads(state) < Loads(*best)) best = std::move(state);
  };
  try_from(start);
  if (best && Loads(*best) == 0) return best;
  std::vector<int> order(start.problem().workers.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](int w) { return start.load(w); });
  for (int some = 1; 2 * some < start.workers(); some *= 2) {
    std::vector<bool> again(order.size());
    for (int i = 0; i < some; ++i) {
      again[static_cast<size_t>(order[static_cast<size_t>(i)])] = true;
      again[static_cast<size_t>(order[order.size() - 1 - static_cast<size_t>(i)])] = true;
    }
    LayerState dealt = start;
    if (!Dealer(again, &dealt).Run().ok()) continue;
    SpreadApart(&dealt);
    try_from(std::move(dealt));
  }
  return best;
}

// What a mean replica is of the load of its worker.
double MeanReplica(const LayerState& state) {
  int workers = 0;
  for (int w = 0; w < state.workers(); ++w) workers += !state.experts_of(w).empty();
  return static_cast<double>(workers) / std::max(state.replicas(), 1);
}

// The balance that is left where this part of it is given up, but not what dealing alone gives.
// Sums are made in another order later, so a little less is the same.
double Enough(const FreshPlan& fresh, double tolerance) {
  return std::max(fresh.dealt, fresh.state.balance() * (1 - tolerance)) - 1e-9;
}

// Whether the workers a and b may trade all that they hold without any rule noticing.
bool Alike(const LayerProblem& problem, size_t a, size_t b) {
  const LayerProblem::Worker &x = problem.workers[a], &y = problem.workers[b];
  if (x.speed != y.speed || x.slots != y.slots || x.zone != y.zone) return false;
  if (!problem.barred.empty() && problem.barred[a] != problem.barred[b]) return false;
  const auto alone = [&](int node) {
    return std::ranges::count(problem.workers, node, &LayerProblem::Worker::node) == 1;
  };
  return x.node == y.node || (problem.allowed.empty() && alone(x.node) && alone(y.node));
}

// A plan from nothing with its workers renamed among those that are alike, so that more of it lies
// where it was before.
LayerState Renamed(const std::vector<std::vector<bool>>& held, const LayerProblem& problem) {
  struct Pair {
    int common;
    size_t from, to;
  };
  std::vector<Pair> pairs;
  for (size_t from = 0; from < held.size(); ++from) {
    for (size_t to = 0; to < held.size(); ++to) {
      if (!Alike(problem, from, to)) continue;
      int common = 0;
      for (size_t e = 0; e < held[from].size(); ++e) {
        common += held[from][e] && problem.previous[to][e];
      }
      pairs.push_back({common, from, to});
    }
  }
  std::ranges::stable_sort(pairs, std::greater<>(), &Pair::common);
  LayerState state(problem);
  std::vector<bool> named(held.size()), taken(held.size());
  for (const Pair& pair : pairs) {
    if (named[pair.from] || taken[pair.to]) continue;
    named[pair.from] = taken[pair.to] = true;
    for (int e = 0; e < problem.experts(); ++e) {
      if (held[pair.from][static_cast<size_t>(e)]) state.Add(static_cast<int>(pair.to), e);
    }
  }
  return state;
}

}  // namespace

absl::StatusOr<std::vector<std::vector<bool>>> PlanLayer(const LayerProblem& problem) {
  LayerState state(problem);
  if (!problem.previous.empty()) {
    TakePrevious(&state);
    SY_RETURN_IF_ERROR(Complete(&state));
    if (problem.leave_alone && state.held() == problem.previous) return problem.previous;
  }
  LayerProblem afresh = problem;
  afresh.previous.clear();
  SY_ASSIGN_OR_RETURN(FreshPlan fresh, Fresh(afresh));
  if (problem.previous.empty()) {
    GatherGroups(Enough(fresh, kForGroups), &fresh.state);
    return fresh.state.held();
  }
  // What a fresh plan gave up for groups is no reason to change it.
  const double tolerance = problem.tolerance * MeanReplica(fresh.state);
  const double enough = Enough(fresh, std::max(tolerance, kForGroups));
  SpreadApart(&state);
  if (auto found = FewestLoads(enough, state)) {
    state = *std::move(found);
  } else {
    state = Renamed(fresh.state.held(), problem);
    TakeBack(enough, &state);
  }
  SpreadApart(&state);  // what found no way before
  return state.held();
}

}  // namespace switchyard::placement
