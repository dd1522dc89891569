// The planner in seeded worlds whose loads drift and whose workers come and go. Every plan must
// keep its promises, whatever came before.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <set>

#include "services/placement/planner.h"
#include "tests/support/expert_loads.h"

namespace switchyard::placement {
namespace {

constexpr int kSteps = 10;

class World {
 public:
  explicit World(uint64_t seed) : random_(seed) {
    const int experts = 16 << Below(3);
    const int layers = 1 + Below(4);
    loads_ = test::ZipfLoads({.layers = layers,
                              .experts = experts,
                              .exponent = 0.2 * Below(8),
                              .windows = kSteps,
                              .drift = 0.05 * Below(5),
                              .noise = 0.1 * Below(3),
                              .seed = seed});
    input_.grid = {std::vector<bool>(static_cast<size_t>(layers), true), experts};
    input_.experts_per_group = 1 << Below(4);
    for (int l = 0; l < layers; ++l) input_.expert_bytes.push_back(1000 + 500 * Below(2));
    nodes_ = 1 + Below(5);
    options_.min_replicas = 1 + Below(3) / 2;
    options_.extra_memory = 0.25 * Below(4);
    const int workers = std::max(2 * nodes_, 3 + Below(8));
    switch (Below(4)) {
      case 0:
        options_.max_experts_per_node =
            std::min(experts, 2 * experts * options_.min_replicas / nodes_);
        break;
      case 1:
        options_.width = options_.min_replicas + 1 + Below(workers - 1);
        break;
    }
    // Room for a third more than is asked for at least, so that one worker may leave; for whole
    // layers where they lie on few workers.
    const double room = options_.width > 0 ? 1.0 * workers / options_.width + 1 : 1.4;
    const double copies = room * (options_.min_replicas + options_.extra_memory);
    int64_t one = 0;
    for (const int64_t bytes : input_.expert_bytes) one += bytes * experts;
    memory_ = static_cast<int64_t>(copies * static_cast<double>(one) / (workers - 1));
    for (int w = 0; w < workers; ++w) Join();
  }

  int Below(int bound) { return static_cast<int>(random_() % static_cast<uint64_t>(bound)); }

  void Join() {
    const int id = next_worker_++;
    const auto on = [this](int node) {
      return std::ranges::count(input_.workers, fmt::format("n{}", node), &PlanWorker::node);
    };
    int node = 0;
    for (int other = 1; other < nodes_; ++other) {
      if (on(other) < on(node)) node = other;
    }
    input_.workers.push_back({.address = fmt::format("w{}:7000", id),
                              .node = fmt::format("n{}", node),
                              .zone = fmt::format("z{}", node % 2),
                              .memory_bytes = memory_ + memory_ / 4 * Below(2),
                              .rows_per_s = 1.0 + Below(2)});
  }

  // Each node keeps a worker, so that what is asked for stays possible.
  bool Leave() {
    const auto at = input_.workers.begin() + Below(static_cast<int>(input_.workers.size()));
    if (std::ranges::count(input_.workers, at->node, &PlanWorker::node) == 1) return false;
    input_.workers.erase(at);
    return true;
  }

  void Step(int step) {
    input_.rows.clear();
    for (const auto& layer : loads_.windows[static_cast<size_t>(step)]) {
      input_.rows.insert(input_.rows.end(), layer.begin(), layer.end());
    }
    if (away_) {
      Join();
      away_ = false;
    } else if (step > 0 && Below(2) == 0) {
      away_ = Leave();
    }
    input_.previous = previous_ ? &*previous_ : nullptr;
    const auto plan = MakePlan(input_, options_);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const PlacementIndex index = Expand(plan->placement, input_.grid, "").value();
    CheckRules(index);
    CheckMoves(*plan, index);
    CheckRepeats(*plan);
    previous_ = index;
    input_.previous = &*previous_;
    const auto again = MakePlan(input_, options_);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->replicas_moved, 0) << "needless moves";
    EXPECT_EQ(again->placement.epoch(), index.epoch());
  }

 private:
  void CheckRules(const PlacementIndex& index) {
    ASSERT_TRUE(CheckCovers(index).ok()) << CheckCovers(index);
    std::map<std::string, std::set<int>> ids;
    for (int layer = 0; layer < input_.grid.layers(); ++layer) {
      for (int e = 0; e < input_.grid.experts; ++e) {
        const auto replicas = index.replicas(layer, e);
        EXPECT_GE(replicas.size(), static_cast<size_t>(options_.min_replicas));
        std::set<std::string> nodes;
        for (const uint16_t w : replicas) nodes.insert(index.workers()[w].node);
        for (const std::string& node : nodes) ids[node].insert(e);
        // A width may leave a layer with workers of one node.
        if (options_.width == 0) {
          EXPECT_GE(nodes.size(), static_cast<size_t>(std::min(options_.min_replicas, nodes_)));
        }
      }
    }
    const int budget = static_cast<int>(options_.extra_memory * input_.grid.experts) +
                       options_.min_replicas * input_.grid.experts;
    for (int layer = 0; layer < input_.grid.layers(); ++layer) {
      int replicas = 0;
      for (int e = 0; e < input_.grid.experts; ++e) {
        replicas += static_cast<int>(index.replicas(layer, e).size());
      }
      EXPECT_LE(replicas, budget) << "layer " << layer;
    }
    for (const auto& [node, of_node] : ids) {
      if (options_.max_experts_per_node == 0) break;
      EXPECT_LE(of_node.size(), static_cast<size_t>(options_.max_experts_per_node)) << node;
    }
    for (const auto& worker : index.workers()) {
      const auto at = std::ranges::find(input_.workers, worker.address, &PlanWorker::address);
      ASSERT_NE(at, input_.workers.end());
      int64_t bytes = 0;
      for (size_t cell = 0; cell < worker.held.size(); ++cell) {
        const size_t layer = cell / static_cast<size_t>(input_.grid.experts);
        if (worker.held[cell]) bytes += input_.expert_bytes[layer];
      }
      EXPECT_LE(bytes, at->memory_bytes) << worker.address;
    }
  }

  void CheckMoves(const Plan& plan, const PlacementIndex& index) {
    int64_t moved = 0;
    for (const auto& worker : index.workers()) {
      const PlacementIndex::Worker* before = nullptr;
      for (size_t w = 0; previous_ && w < previous_->workers().size(); ++w) {
        if (previous_->workers()[w].address == worker.address) before = &previous_->workers()[w];
      }
      for (size_t cell = 0; cell < worker.held.size(); ++cell) {
        moved += worker.held[cell] && (before == nullptr || !before->held[cell]);
      }
    }
    EXPECT_EQ(plan.replicas_moved, moved);
  }

  // Neither time nor the order of the workers matters.
  void CheckRepeats(const Plan& plan) {
    PlanInput shuffled = input_;
    std::ranges::shuffle(shuffled.workers, random_);
    const auto other = MakePlan(shuffled, options_);
    ASSERT_TRUE(other.ok()) << other.status();
    EXPECT_EQ(ToJson(other->placement), ToJson(plan.placement));
    // Moving little may not cost balance.
    PlanInput fresh = input_;
    fresh.previous = nullptr;
    const auto from_nothing = MakePlan(fresh, options_);
    ASSERT_TRUE(from_nothing.ok()) << from_nothing.status();
    if (options_.width == 0 && options_.max_experts_per_node == 0) {
      EXPECT_GE(plan.stats.utilisation, from_nothing->stats.utilisation * 0.99);
    }
  }

  std::mt19937_64 random_;
  test::ExpertLoads loads_;
  PlanInput input_;
  PlanOptions options_;
  std::optional<PlacementIndex> previous_;
  int64_t memory_ = 0;
  int nodes_ = 1, next_worker_ = 0;
  bool away_ = false;  // a worker
};

class PlannerSim : public ::testing::TestWithParam<uint64_t> {};

TEST_P(PlannerSim, EveryPlanKeepsItsPromises) {
  World world(GetParam());
  for (int step = 0; step < kSteps && !HasFatalFailure(); ++step) {
    SCOPED_TRACE(fmt::format("step {}", step));
    world.Step(step);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, PlannerSim, ::testing::Range<uint64_t>(1, 21));

}  // namespace
}  // namespace switchyard::placement
