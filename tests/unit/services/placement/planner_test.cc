#include "services/placement/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "services/base/text.h"
#include "tests/support/expert_loads.h"

namespace switchyard::placement {
namespace {

using ::testing::HasSubstr;
using ::testing::Le;

constexpr int64_t kBytes = 1000;

// Of a model whose layer 0 has no experts; loads are Zipf's of the other layers.
PlanInput InputOf(int layers, int experts, double exponent = 0.9, uint64_t seed = 1) {
  PlanInput input;
  input.grid = {std::vector<bool>(static_cast<size_t>(layers + 1), true), experts};
  input.grid.moe_layers[0] = false;
  input.rows.assign(static_cast<size_t>(experts), 0);
  const auto loads = test::ZipfLoads(
      {.layers = layers, .experts = experts, .exponent = exponent, .windows = 1, .seed = seed});
  for (const auto& layer : loads.windows[0]) {
    input.rows.insert(input.rows.end(), layer.begin(), layer.end());
  }
  input.expert_bytes.assign(static_cast<size_t>(layers + 1), kBytes);
  return input;
}

// `slots` in each of the layers with experts.
void AddWorkers(int count, int slots, PlanInput* input, std::string_view node = "",
                std::string_view zone = "") {
  const auto layers = static_cast<int64_t>(std::ranges::count(input->grid.moe_layers, true));
  for (int i = 0; i < count; ++i) {
    input->workers.push_back({.address = fmt::format("10.0.0.{}:7000", input->workers.size()),
                              .node = std::string(node),
                              .zone = std::string(zone),
                              .memory_bytes = slots * layers * kBytes});
  }
}

Plan PlanOf(const PlanInput& input, const PlanOptions& options = {}) {
  auto plan = MakePlan(input, options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *std::move(plan) : Plan();
}

PlacementIndex IndexOf(const Plan& plan, const PlanInput& input) {
  return Expand(plan.placement, input.grid, "").value();
}

std::string ErrorOf(const PlanInput& input, const PlanOptions& options,
                    absl::StatusCode code = absl::StatusCode::kResourceExhausted) {
  const auto plan = MakePlan(input, options);
  EXPECT_EQ(plan.status().code(), code) << plan.status();
  return std::string(ToStd(plan.status().message()));
}

std::set<std::string> NodesOf(const PlacementIndex& index, int layer, int expert) {
  std::set<std::string> nodes;
  for (const uint16_t w : index.replicas(layer, expert)) nodes.insert(index.workers()[w].node);
  return nodes;
}

TEST(Planner, EveryExpertHasAPlaceWithinMemory) {
  PlanInput input = InputOf(4, 64);
  AddWorkers(8, 10, &input);
  input.model_fingerprint = "abc";
  const Plan plan = PlanOf(input);
  const PlacementIndex index = IndexOf(plan, input);
  EXPECT_TRUE(CheckCovers(index).ok());
  EXPECT_EQ(plan.placement.model_fingerprint(), "abc");
  EXPECT_EQ(plan.placement.epoch(), 1u);
  for (const auto& worker : index.workers()) EXPECT_LE(worker.replicas, 40);
  EXPECT_GT(plan.stats.balance_least, 0.99);
  EXPECT_EQ(plan.stats.replicas, 4 * 80);
  EXPECT_EQ(plan.stats.bytes, 4 * 80 * kBytes);
  EXPECT_EQ(plan.stats.most_bytes, 40 * kBytes);
  EXPECT_EQ(plan.bytes_moved, plan.stats.bytes);
}

TEST(Planner, HotExpertsGetTheReplicas) {
  PlanInput input = InputOf(1, 16);
  AddWorkers(4, 5, &input);
  for (int e = 0; e < 16; ++e) input.rows[input.grid.cell(1, e)] = e == 3 ? 100 : 10;
  const PlacementIndex index = IndexOf(PlanOf(input), input);
  EXPECT_EQ(index.replicas(1, 3).size(), 4u);
  EXPECT_EQ(index.replicas(1, 4).size(), 1u);
}

TEST(Planner, WithoutExtraMemoryThereIsOneOfEach) {
  PlanInput input = InputOf(3, 32);
  AddWorkers(4, 20, &input);
  const Plan plan = PlanOf(input, {.extra_memory = 0});
  EXPECT_EQ(plan.stats.replicas, 3 * 32);
}

TEST(Planner, TheOrderOfWorkersDoesNotMatter) {
  PlanInput input = InputOf(4, 64);
  AddWorkers(4, 10, &input, "a");
  AddWorkers(4, 10, &input, "b");
  const std::string once = ToJson(PlanOf(input).placement);
  EXPECT_EQ(ToJson(PlanOf(input).placement), once);
  std::ranges::reverse(input.workers);
  EXPECT_EQ(ToJson(PlanOf(input).placement), once);
}

TEST(Planner, TheSameLoadAgainMovesNothing) {
  PlanInput input = InputOf(6, 64, 1.1);
  AddWorkers(7, 12, &input);
  const PlacementIndex first = IndexOf(PlanOf(input), input);
  input.previous = &first;
  const Plan again = PlanOf(input);
  EXPECT_EQ(again.replicas_moved, 0);
  EXPECT_EQ(again.bytes_moved, 0);
  EXPECT_EQ(again.placement.epoch(), first.epoch());
}

TEST(Planner, NoEpochComesAfterTheLast) {
  PlanInput input = InputOf(6, 64);
  AddWorkers(7, 12, &input);
  v1::Placement document = PlanOf(input).placement;
  document.set_epoch(kEpochMax);
  const PlacementIndex last = *Expand(document, input.grid, "");
  input.previous = &last;
  EXPECT_EQ(PlanOf(input).placement.epoch(), kEpochMax);  // as nothing moves
  input.workers.back().zone = "z";
  const auto plan = MakePlan(input, {});
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("no placement can follow"));
}

TEST(Planner, AnotherLoadMovesAPartAndTheEpoch) {
  PlanInput input = InputOf(6, 64, 0.9, 1);
  AddWorkers(8, 10, &input);
  const PlacementIndex first = IndexOf(PlanOf(input), input);
  input.previous = &first;
  for (double& rows : input.rows) rows *= 1 + 0.3 * (static_cast<int>(rows) % 2);
  const Plan next = PlanOf(input);
  EXPECT_GT(next.replicas_moved, 0);
  EXPECT_LT(next.replicas_moved, next.stats.replicas / 4);
  EXPECT_EQ(next.bytes_moved, next.replicas_moved * kBytes);
  EXPECT_EQ(next.placement.epoch(), 2u);
  EXPECT_GT(next.stats.balance_least, 0.99);
}

TEST(Planner, ALostWorkersExpertsGoToTheOthersAndLittleElseMoves) {
  PlanInput input = InputOf(8, 64);
  AddWorkers(8, 12, &input);
  const PlacementIndex first = IndexOf(PlanOf(input), input);
  const int64_t lost = first.workers()[3].replicas;
  input.workers.erase(input.workers.begin() + 3);
  input.previous = &first;
  const Plan next = PlanOf(input);
  EXPECT_TRUE(CheckCovers(IndexOf(next, input)).ok());
  EXPECT_THAT(next.replicas_moved, Le(2 * lost));
  EXPECT_GT(next.stats.balance_least, 0.99);
}

TEST(Planner, ANewWorkerIsUsed) {
  PlanInput input = InputOf(8, 64);
  AddWorkers(4, 20, &input);
  const PlacementIndex first = IndexOf(PlanOf(input), input);
  AddWorkers(1, 20, &input);
  input.previous = &first;
  const Plan next = PlanOf(input);
  EXPECT_GT(IndexOf(next, input).workers()[4].replicas, 40);
  EXPECT_LT(next.replicas_moved, 8 * 40);
  EXPECT_GT(next.stats.balance_least, 0.99);
}

TEST(Planner, ReplicasLieOnDifferentNodesAndZones) {
  PlanInput input = InputOf(4, 32, 1.2);
  AddWorkers(3, 12, &input, "a", "x");
  AddWorkers(3, 12, &input, "b", "x");
  AddWorkers(3, 12, &input, "c", "y");
  const Plan plan = PlanOf(input, {.extra_memory = 1, .min_replicas = 2});
  const PlacementIndex index = IndexOf(plan, input);
  for (int layer = 1; layer <= 4; ++layer) {
    for (int e = 0; e < 32; ++e) {
      const auto replicas = index.replicas(layer, e);
      ASSERT_GE(replicas.size(), 2u);
      const std::set<std::string> nodes = NodesOf(index, layer, e);
      EXPECT_EQ(nodes.size(), std::min<size_t>(replicas.size(), 3));
      EXPECT_TRUE(nodes.contains("c")) << "both zones";
    }
  }
}

TEST(Planner, TwoReplicasOnOneNodeWhereThereIsNoOther) {
  PlanInput input = InputOf(2, 16);
  AddWorkers(2, 16, &input, "a");
  const PlacementIndex index = IndexOf(PlanOf(input, {.min_replicas = 2}), input);
  for (int e = 0; e < 16; ++e) EXPECT_EQ(index.replicas(1, e).size(), 2u);
}

TEST(Planner, FasterWorkersGetMore) {
  PlanInput input = InputOf(4, 64, 0.5);
  AddWorkers(4, 30, &input);
  input.workers[0].rows_per_s = 3;
  const Plan plan = PlanOf(input);
  EXPECT_GT(plan.stats.balance_least, 0.99);
  EXPECT_GT(IndexOf(plan, input).workers()[0].replicas, IndexOf(plan, input).workers()[1].replicas);
}

TEST(Planner, MemoryMayDiffer) {
  PlanInput input = InputOf(4, 64);
  AddWorkers(1, 40, &input);
  AddWorkers(4, 8, &input);
  const Plan plan = PlanOf(input, {.extra_memory = 0});
  const PlacementIndex index = IndexOf(plan, input);
  EXPECT_TRUE(CheckCovers(index).ok());
  for (size_t w = 1; w < 5; ++w) EXPECT_LE(index.workers()[w].replicas, 32);
}

TEST(Planner, LayersMayDifferInBytes) {
  PlanInput input = InputOf(4, 32);
  input.expert_bytes = {0, kBytes, 3 * kBytes, kBytes, 3 * kBytes};
  AddWorkers(4, 0, &input);
  for (PlanWorker& worker : input.workers) worker.memory_bytes = 8 * 8 * kBytes;
  const Plan plan = PlanOf(input);
  EXPECT_TRUE(CheckCovers(IndexOf(plan, input)).ok());
  EXPECT_LE(plan.stats.most_bytes, 8 * 8 * kBytes);
}

TEST(Planner, WithoutAnyLoadExpertsAreSpreadEvenly) {
  PlanInput input = InputOf(2, 64);
  std::ranges::fill(input.rows, 0);
  AddWorkers(8, 20, &input);
  const PlacementIndex index = IndexOf(PlanOf(input, {.extra_memory = 0}), input);
  for (const auto& worker : index.workers()) EXPECT_EQ(worker.replicas, 16);
}

TEST(Planner, GateGroupsLieTogetherWhereThatCostsNothing) {
  PlanInput input = InputOf(4, 64, 0.3);
  AddWorkers(8, 8, &input);
  const Plan scattered = PlanOf(input, {.extra_memory = 0});
  input.experts_per_group = 8;
  const Plan gathered = PlanOf(input, {.extra_memory = 0});
  EXPECT_GE(gathered.stats.utilisation, scattered.stats.utilisation - 0.002);
  const double before = Measure(IndexOf(scattered, input), input).groups_split;
  EXPECT_LT(gathered.stats.groups_split, 0.95 * before);

  std::ranges::fill(input.rows, 1);
  EXPECT_EQ(PlanOf(input, {.extra_memory = 0}).stats.groups_split, 1);
}

TEST(Planner, ANodesExpertIdsCanBeCapped) {
  PlanInput input = InputOf(4, 32);
  for (const char* node : {"a", "b", "c", "d"}) AddWorkers(2, 16, &input, node);
  const PlanOptions options{.extra_memory = 1, .max_experts_per_node = 10};
  const PlacementIndex index = IndexOf(PlanOf(input, options), input);
  EXPECT_TRUE(CheckCovers(index).ok());
  std::map<std::string, std::set<int>> ids;
  for (int layer = 1; layer <= 4; ++layer) {
    for (int e = 0; e < 32; ++e) {
      for (const std::string& node : NodesOf(index, layer, e)) ids[node].insert(e);
    }
  }
  for (const auto& [node, of_node] : ids) EXPECT_LE(of_node.size(), 10u) << node;

  input.previous = &index;
  EXPECT_EQ(PlanOf(input, options).replicas_moved, 0);
}

TEST(Planner, ALayerLiesOnAsManyWorkersAsItsWidth) {
  PlanInput input = InputOf(12, 64);
  AddWorkers(16, 24, &input);
  const PlanOptions options{.width = 4};
  const Plan plan = PlanOf(input, options);
  EXPECT_EQ(plan.stats.layer_width_max, 4);
  EXPECT_GT(plan.stats.balance_least, 0.98);
  const PlacementIndex index = IndexOf(plan, input);
  for (const auto& worker : index.workers()) {
    EXPECT_GT(worker.replicas, 0) << "layers are striped over all workers";
  }
  input.previous = &index;
  EXPECT_EQ(PlanOf(input, options).replicas_moved, 0);
}

TEST(Planner, WhatDoesNotFitIsSaidInBytes) {
  PlanInput input = InputOf(4, 64);
  AddWorkers(4, 15, &input);
  EXPECT_THAT(ErrorOf(input, {}), HasSubstr("(16000 bytes) are missing"));
  AddWorkers(4, 15, &input);
  EXPECT_TRUE(MakePlan(input, {}).ok());
  EXPECT_THAT(ErrorOf(input, {.min_replicas = 2}), HasSubstr("(32000 bytes) are missing"));
  EXPECT_THAT(ErrorOf(input, {.min_replicas = 9}), HasSubstr("need as many workers; there are 8"));
}

TEST(Planner, WhatIsLeftOfMemoryHoldsNoPartOfAnExpert) {
  PlanInput input = InputOf(1, 10);
  AddWorkers(4, 0, &input);
  for (PlanWorker& worker : input.workers) worker.memory_bytes = 2 * kBytes + 700;
  EXPECT_THAT(ErrorOf(input, {}), HasSubstr("(2000 bytes) are missing"));
}

TEST(Planner, ACapThatCannotBeKeptIsSaidInNodes) {
  PlanInput input = InputOf(2, 32);
  AddWorkers(3, 32, &input);
  EXPECT_THAT(ErrorOf(input, {.max_experts_per_node = 8}), HasSubstr("1 nodes are missing"));
}

TEST(Planner, NonsenseIsRefusedByName) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  PlanInput input = InputOf(2, 8);
  EXPECT_THAT(ErrorOf(input, {}, invalid), HasSubstr("no worker"));
  AddWorkers(2, 8, &input);
  EXPECT_THAT(ErrorOf(input, {.min_replicas = 0}, invalid), HasSubstr("min_replicas is 0"));
  EXPECT_THAT(ErrorOf(input, {.max_experts_per_node = 8, .width = 2}, invalid),
              HasSubstr("do not go together"));
  PlanInput twice = input;
  twice.workers[1] = twice.workers[0];
  EXPECT_THAT(ErrorOf(twice, {}, invalid), HasSubstr("10.0.0.0:7000 stands twice"));
  PlanInput still = input;
  still.workers[1].rows_per_s = 0;
  EXPECT_THAT(ErrorOf(still, {}, invalid), HasSubstr("10.0.0.1:7000: 0 rows/s"));
  PlanInput negative = input;
  negative.rows[9] = -1;
  EXPECT_THAT(ErrorOf(negative, {}, invalid), HasSubstr("layer 1 expert 1: -1 rows"));
  PlanInput groups = input;
  groups.experts_per_group = 3;
  EXPECT_THAT(ErrorOf(groups, {}, invalid), HasSubstr("gate groups of 3"));
  PlanInput dense = input;
  dense.grid.moe_layers = {false, false, false};
  EXPECT_THAT(ErrorOf(dense, {}, invalid), HasSubstr("no experts"));
}

TEST(BestWidth, WeighsFramesAgainstWeightsAndRows) {
  WidthCosts costs{.tokens_per_step = 64,
                   .top_k = 8,
                   .experts = 256,
                   .expert_bytes = 44'000'000,
                   .row_bytes = 4 * 7168,
                   .link_bytes_per_s = 12.5e9,
                   .memory_bytes_per_s = 200e9};
  // 222 experts that a step meets take 49 ms of reading, against 17 us a frame.
  EXPECT_EQ(BestWidth(costs, 1, 1000), 54);
  EXPECT_EQ(BestWidth(costs, 8, 1000), 48);
  EXPECT_EQ(BestWidth(costs, 8, 32), 32);
  costs.memory_bytes_per_s = 3e12;
  EXPECT_EQ(BestWidth(costs, 1, 32), 16);
  costs.tokens_per_step = 1;
  EXPECT_EQ(BestWidth(costs, 8, 32), 4);
  costs.expert_bytes = 0, costs.row_bytes = 0;
  EXPECT_EQ(BestWidth(costs, 8, 32), 1);
}

TEST(Planner, NothingLiesWhereItIsBarred) {
  PlanInput input = InputOf(2, 32);
  AddWorkers(4, 12, &input);
  const Plan before = PlanOf(input);
  const PlacementIndex index = IndexOf(before, input);
  // A third of what each should hold by that plan.
  for (size_t w = 0; w < index.workers().size(); ++w) {
    std::vector<bool>& barred = input.workers[w].barred;
    barred = index.workers()[w].held;
    for (size_t cell = 0; cell < barred.size(); ++cell)
      barred[cell] = barred[cell] && cell % 3 == 0;
  }
  for (const PlacementIndex* previous : {static_cast<const PlacementIndex*>(nullptr), &index}) {
    input.previous = previous;
    const PlacementIndex planned = IndexOf(PlanOf(input), input);
    EXPECT_TRUE(CheckCovers(planned).ok());
    for (size_t w = 0; w < planned.workers().size(); ++w) {
      for (size_t cell = 0; cell < input.grid.cells(); ++cell) {
        EXPECT_FALSE(planned.workers()[w].held[cell] && input.workers[w].barred[cell]) << cell;
      }
    }
  }
  input.workers[0].barred.pop_back();
  EXPECT_THAT(ErrorOf(input, {}, absl::StatusCode::kInvalidArgument), HasSubstr("barred"));
}

}  // namespace
}  // namespace switchyard::placement
