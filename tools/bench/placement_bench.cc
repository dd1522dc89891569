// placement_bench [--json]: how balanced our planner's placements are and how much it moves, next
// to EPLB and to experts placed by contiguous ids, over loads that are skewed as Zipf's law has it
// and drift, and over a recorded one; and how long a plan of a large model takes. All but the last
// line is the same on every machine.
#include <fmt/format.h>

#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>
#include <string_view>

#include "services/base/check.h"
#include "services/placement/planner.h"
#include "tests/support/placement_comparison.h"

namespace switchyard::bench {
namespace {

using test::ExpertLoads;
using test::Fleet;
using test::PlacementComparison;
using Json = nlohmann::ordered_json;

struct Case {
  ExpertLoads loads;
  Fleet fleet;
};

std::vector<Case> Cases() {
  std::vector<Case> out;
  struct Shape {
    int experts;
    Fleet fleet;
  };
  constexpr Shape kShapes[] = {
      {32, {8, 5}}, {64, {8, 10}}, {128, {16, 10}}, {256, {32, 9}}, {256, {64, 5}}};
  for (const Shape& shape : kShapes) {
    for (const double exponent : {0.3, 0.6, 0.9, 1.2}) {
      out.push_back(
          {test::ZipfLoads({.experts = shape.experts, .exponent = exponent}), shape.fleet});
    }
  }
  out.push_back({test::RecordedLoads(), {8, 20}});
  return out;
}

Json Row(const Case& c, const PlacementComparison& found) {
  return {{"load", c.loads.name},
          {"experts", c.loads.experts()},
          {"workers", c.fleet.workers},
          {"slots", c.fleet.slots},
          {"utilisation_static", found.static_utilisation},
          {"utilisation_eplb", found.eplb.utilisation},
          {"utilisation", found.ours.utilisation},
          {"balance_eplb", found.eplb.balance},
          {"balance", found.ours.balance},
          {"balance_fresh", found.fresh_balance},
          {"least_lead", found.least_lead},
          {"moved_eplb", found.eplb.moved},
          {"moved", found.ours.moved}};
}

// CPU time of a plan from nothing and of one from what was before, in a model of 58 layers of 256
// experts on 64 workers.
std::pair<double, double> PlanSeconds() {
  const ExpertLoads loads =
      test::ZipfLoads({.layers = 58, .experts = 256, .exponent = 0.9, .windows = 2});
  placement::PlanInput input{.grid = {std::vector<bool>(58, true), 256},
                             .rows = {},
                             .expert_bytes = std::vector<int64_t>(58, 1),
                             .experts_per_group = 32,
                             .workers = {},
                             .model_fingerprint = ""};
  for (int w = 0; w < 64; ++w) {
    input.workers.push_back({.address = fmt::format("w:{}", w), .memory_bytes = 58 * 5});
  }
  double seconds[2];
  std::optional<placement::PlacementIndex> previous;
  for (size_t i = 0; i < 2; ++i) {
    input.rows.clear();
    for (const auto& layer : loads.windows[i]) {
      input.rows.insert(input.rows.end(), layer.begin(), layer.end());
    }
    input.previous = previous ? &*previous : nullptr;
    const std::clock_t start = std::clock();
    const auto plan = placement::MakePlan(input, {});
    seconds[i] = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    SY_CHECK(plan.ok());
    previous = placement::Expand(plan->placement, input.grid, "").value();
  }
  return {seconds[0], seconds[1]};
}

void Print(const Json& rows, std::pair<double, double> seconds) {
  fmt::print("{:<18} {:>7} {:>7} {:>5}  {:^24}  {:^24}  {:^20}\n", "", "", "", "", "utilisation, %",
             "balance", "replicas moved");
  fmt::print("{:<18} {:>7} {:>7} {:>5}  {:>7} {:>7} {:>8}  {:>7} {:>7} {:>8}  {:>6} {:>6} {:>6}\n",
             "load", "experts", "workers", "slots", "static", "EPLB", "ours", "EPLB", "ours",
             "fresh", "EPLB", "ours", "part");
  for (const Json& r : rows) {
    const auto moved = r["moved"].get<double>(), moved_eplb = r["moved_eplb"].get<double>();
    fmt::print(
        "{:<18} {:>7} {:>7} {:>5}  {:>7.1f} {:>7.1f} {:>8.1f}  {:>7.4f} {:>7.4f} {:>8.4f}  {:>6} "
        "{:>6} {:>5.0f}%\n",
        r["load"].get<std::string>(), r["experts"].get<int>(), r["workers"].get<int>(),
        r["slots"].get<int>(), 100 * r["utilisation_static"].get<double>(),
        100 * r["utilisation_eplb"].get<double>(), 100 * r["utilisation"].get<double>(),
        r["balance_eplb"].get<double>(), r["balance"].get<double>(),
        r["balance_fresh"].get<double>(), moved_eplb, moved, 100 * moved / moved_eplb);
  }
  fmt::print(
      "58 layers of 256 experts on 64 workers: {:.2f} s of CPU time from nothing, {:.2f} s after a "
      "drift\n",
      seconds.first, seconds.second);
}

int Main(int argc, char** argv) {
  const bool json = argc == 2 && std::string_view(argv[1]) == "--json";
  if (argc > 1 && !json) {
    fmt::print(stderr, "placement_bench [--json]\n");
    return 2;
  }
  Json rows = Json::array();
  for (const Case& c : Cases()) rows.push_back(Row(c, Compare(c.loads, c.fleet)));
  const std::pair<double, double> seconds = PlanSeconds();
  if (json) {
    const Json out = {
        {"rows", rows}, {"plan_fresh_s", seconds.first}, {"plan_after_drift_s", seconds.second}};
    fmt::print("{}\n", out.dump(2));
  } else {
    Print(rows, seconds);
  }
  return 0;
}

}  // namespace
}  // namespace switchyard::bench

int main(int argc, char** argv) { return switchyard::bench::Main(argc, argv); }
