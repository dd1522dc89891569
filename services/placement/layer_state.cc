#include "services/placement/layer_state.h"

#include <algorithm>
#include <set>

namespace switchyard::placement {
namespace {

void Insert(std::vector<int>* sorted, int value) {
  sorted->insert(std::ranges::lower_bound(*sorted, value), value);
}
void Erase(std::vector<int>* sorted, int value) {
  sorted->erase(std::ranges::lower_bound(*sorted, value));
}

}  // namespace

LayerState::LayerState(const LayerProblem& problem)
    : problem_(&problem),
      held_(problem.workers.size(), std::vector<bool>(problem.load.size())),
      holders_(problem.load.size()),
      experts_of_(problem.workers.size()),
      rows_(problem.workers.size()),
      nodes_(problem.load.size()),
      zones_(problem.load.size()),
      crowding_(problem.load.size()) {
  for (const double rows : problem.load) rows_sum_ += rows;
  for (const LayerProblem::Worker& worker : problem.workers) speed_sum_ += worker.speed;
  std::set<int> nodes, zones;
  for (int expert = 0; expert < problem.experts(); ++expert) {
    if (expert == 0 || !problem.allowed.empty() || !problem.barred.empty()) {
      nodes.clear(), zones.clear();
      for (int w = 0; w < workers(); ++w) {
        const LayerProblem::Worker& worker = problem.workers[Ix(w)];
        if (worker.slots == 0 || !Allowed(w, expert)) continue;
        nodes.insert(worker.node), zones.insert(worker.zone);
      }
    }
    nodes_[Ix(expert)] = static_cast<int>(nodes.size());
    zones_[Ix(expert)] = static_cast<int>(zones.size());
  }
}

int LayerState::busiest() const {
  int at = 0;
  for (int w = 1; w < workers(); ++w) {
    if (load(w) > load(at)) at = w;
  }
  return at;
}

double LayerState::balance() const {
  return rows_sum_ > 0 ? rows_sum_ / speed_sum_ / load(busiest()) : 1;
}

void LayerState::Spread(int expert, double sign) {
  if (replicas(expert) == 0) return;
  const double rows = sign * share(expert);
  for (const int holder : holders(expert)) rows_[Ix(holder)] += rows;
}

void LayerState::Add(int worker, int expert) {
  crowding_[Ix(expert)] = CrowdingAfter(expert, worker, -1);
  Spread(expert, -1);
  held_[Ix(worker)][Ix(expert)] = true;
  Insert(&holders_[Ix(expert)], worker);
  Insert(&experts_of_[Ix(worker)], expert);
  Spread(expert, 1);
  ++replicas_;
}

void LayerState::Remove(int worker, int expert) {
  crowding_[Ix(expert)] = CrowdingAfter(expert, -1, worker);
  Spread(expert, -1);
  held_[Ix(worker)][Ix(expert)] = false;
  Erase(&holders_[Ix(expert)], worker);
  Erase(&experts_of_[Ix(worker)], expert);
  Spread(expert, 1);
  --replicas_;
}

int LayerState::CrowdingAfter(int expert, int gained, int lost) const {
  // Distinct nodes and zones of the holders; there are few of them.
  int count = 0, nodes = 0, zones = 0;
  const auto holder = [&](int i) {
    return i < replicas(expert) ? holders_[Ix(expert)][Ix(i)] : gained;
  };
  const int holders = replicas(expert) + (gained >= 0 ? 1 : 0);
  for (int i = 0; i < holders; ++i) {
    if (holder(i) == lost) continue;
    ++count;
    const LayerProblem::Worker& at = problem_->workers[Ix(holder(i))];
    bool new_node = true, new_zone = true;
    for (int j = 0; j < i; ++j) {
      if (holder(j) == lost) continue;
      const LayerProblem::Worker& other = problem_->workers[Ix(holder(j))];
      new_node &= other.node != at.node;
      new_zone &= other.zone != at.zone;
    }
    nodes += new_node, zones += new_zone;
  }
  return std::min(count, nodes_[Ix(expert)]) - nodes + std::min(count, zones_[Ix(expert)]) - zones;
}

}  // namespace switchyard::placement
