#include "tests/support/eplb.h"

#include <algorithm>
#include <numeric>
#include <set>

namespace switchyard::test {
namespace {

size_t Ix(int i) { return static_cast<size_t>(i); }

// Deals items out to packs of equal size, heaviest first, each to the lightest pack with room. The
// items of each pack in the order in which they came.
std::vector<std::vector<int>> Pack(const std::vector<double>& weights, int packs) {
  const size_t size = weights.size() / Ix(packs);
  std::vector<std::vector<int>> out(Ix(packs));
  std::vector<int> order(weights.size());
  std::iota(order.begin(), order.end(), 0);
  if (size > 1) {
    std::ranges::stable_sort(order, std::greater<>(), [&](int i) { return weights[Ix(i)]; });
  }
  std::vector<double> sums(Ix(packs));
  for (const int item : order) {
    int best = -1;
    for (int p = 0; p < packs; ++p) {
      if (out[Ix(p)].size() == size) continue;
      if (best < 0 || sums[Ix(p)] < sums[Ix(best)]) best = p;
      if (size == 1) break;  // the published one leaves such items in their order
    }
    out[Ix(best)].push_back(item);
    sums[Ix(best)] += weights[Ix(item)];
  }
  return out;
}

// One node's experts, replicated and packed onto its workers.
std::vector<std::vector<int>> PackNode(const std::vector<int>& experts,
                                       const std::vector<double>& rows, int replicas, int workers) {
  std::vector<int> count(experts.size(), 1), replica_of(experts.size());
  std::iota(replica_of.begin(), replica_of.end(), 0);
  const auto share = [&](int i) { return rows[Ix(experts[Ix(i)])] / count[Ix(i)]; };
  while (replica_of.size() < Ix(replicas)) {
    int heaviest = 0;
    for (int i = 1; i < static_cast<int>(experts.size()); ++i) {
      if (share(i) > share(heaviest)) heaviest = i;
    }
    ++count[Ix(heaviest)];
    replica_of.push_back(heaviest);
  }
  std::vector<double> weights;
  for (const int i : replica_of) weights.push_back(share(i));
  std::vector<std::vector<int>> out = Pack(weights, workers);
  for (std::vector<int>& pack : out) {
    for (int& item : pack) item = experts[Ix(replica_of[Ix(item)])];
  }
  return out;
}

}  // namespace

EplbPlacement Eplb(const std::vector<std::vector<double>>& rows, const EplbShape& shape) {
  const bool whole_groups = shape.groups % shape.nodes == 0;
  const int groups = whole_groups ? shape.groups : 1, nodes = whole_groups ? shape.nodes : 1;
  EplbPlacement out;
  for (const std::vector<double>& layer : rows) {
    const size_t group_size = layer.size() / Ix(groups);
    std::vector<double> group_rows(Ix(groups));
    for (size_t e = 0; e < layer.size(); ++e) group_rows[e / group_size] += layer[e];
    std::vector<std::vector<int>>& workers = out.emplace_back();
    for (const std::vector<int>& of_node : Pack(group_rows, nodes)) {
      std::vector<int> experts;
      for (const int group : of_node) {
        for (size_t i = 0; i < group_size; ++i) {
          experts.push_back(static_cast<int>(Ix(group) * group_size + i));
        }
      }
      for (auto& worker : PackNode(experts, layer, shape.replicas / nodes, shape.workers / nodes)) {
        workers.push_back(std::move(worker));
      }
    }
  }
  return out;
}

EplbStats MeasureEplb(const EplbPlacement& placement,
                      const std::vector<std::vector<double>>& rows) {
  double balances = 0, means = 0, highests = 0;
  for (size_t layer = 0; layer < rows.size(); ++layer) {
    std::vector<int> count(rows[layer].size());
    for (const auto& worker : placement[layer]) {
      for (const int e : worker) ++count[Ix(e)];
    }
    double highest = 0;
    for (const auto& worker : placement[layer]) {
      double load = 0;
      for (const int e : worker) load += rows[layer][Ix(e)] / count[Ix(e)];
      highest = std::max(highest, load);
    }
    const double mean = std::accumulate(rows[layer].begin(), rows[layer].end(), 0.0) /
                        static_cast<double>(placement[layer].size());
    balances += mean / highest, means += mean, highests += highest;
  }
  return {balances / static_cast<double>(rows.size()), means / highests};
}

int EplbMoved(const EplbPlacement& from, const EplbPlacement& to) {
  int moved = 0;
  for (size_t layer = 0; layer < to.size(); ++layer) {
    for (size_t w = 0; w < to[layer].size(); ++w) {
      const std::set<int> before(from[layer][w].begin(), from[layer][w].end());
      const std::set<int> after(to[layer][w].begin(), to[layer][w].end());
      for (const int e : after) moved += !before.contains(e);
    }
  }
  return moved;
}

}  // namespace switchyard::test
