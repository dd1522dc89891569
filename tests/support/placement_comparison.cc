#include "tests/support/placement_comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "services/base/check.h"
#include "services/placement/planner.h"
#include "tests/support/eplb.h"

namespace switchyard::test {
namespace {

using placement::PlanInput;

constexpr int64_t kExpertBytes = 1000;

PlanInput InputOf(const ExpertLoads& loads, const Fleet& fleet) {
  const auto layers = static_cast<size_t>(loads.layers());
  PlanInput input{.grid = {std::vector<bool>(layers, true), loads.experts()},
                  .rows = {},
                  .expert_bytes = std::vector<int64_t>(layers, kExpertBytes),
                  .experts_per_group = loads.experts_per_group,
                  .workers = {},
                  .model_fingerprint = ""};
  for (int w = 0; w < fleet.workers; ++w) {
    input.workers.push_back({.address = fmt::format("10.0.0.{}:7000", w),
                             .memory_bytes = kExpertBytes * fleet.slots * loads.layers()});
  }
  return input;
}

double StaticUtilisation(const ExpertRows& rows, int workers) {
  double means = 0, highests = 0;
  for (const std::vector<double>& layer : rows) {
    std::vector<double> load(static_cast<size_t>(workers));
    for (size_t e = 0; e < layer.size(); ++e) load[e * load.size() / layer.size()] += layer[e];
    means += std::accumulate(load.begin(), load.end(), 0.0) / workers;
    highests += std::ranges::max(load);
  }
  return means / highests;
}

}  // namespace

PlacementComparison Compare(const ExpertLoads& loads, const Fleet& fleet) {
  PlanInput input = InputOf(loads, fleet);
  const EplbShape shape{.replicas = fleet.slots * fleet.workers, .workers = fleet.workers};
  placement::PlanOptions options;
  options.extra_memory = static_cast<double>(shape.replicas) / loads.experts() - 1;
  PlacementComparison out{.least_lead = 1};
  std::optional<placement::PlacementIndex> previous;
  EplbPlacement eplb_previous;
  for (const ExpertRows& rows : loads.windows) {
    input.rows.clear();
    for (const auto& layer : rows) input.rows.insert(input.rows.end(), layer.begin(), layer.end());
    const EplbPlacement eplb = Eplb(rows, shape);
    const EplbStats eplb_stats = MeasureEplb(eplb, rows);
    input.previous = nullptr;
    const auto fresh = MakePlan(input, options);
    input.previous = previous ? &*previous : nullptr;
    const auto plan = MakePlan(input, options);
    SY_CHECK(fresh.ok() && plan.ok());
    if (previous) {
      out.ours.moved += static_cast<int>(plan->replicas_moved);
      out.eplb.moved += EplbMoved(eplb_previous, eplb);
    }
    previous = placement::Expand(plan->placement, input.grid, "").value();
    eplb_previous = eplb;
    const double part = 1 / static_cast<double>(loads.windows.size());
    out.ours.balance += part * plan->stats.balance_mean;
    out.ours.utilisation += part * plan->stats.utilisation;
    out.eplb.balance += part * eplb_stats.balance_mean;
    out.eplb.utilisation += part * eplb_stats.utilisation;
    out.fresh_balance += part * fresh->stats.balance_mean;
    out.static_utilisation += part * StaticUtilisation(rows, fleet.workers);
    out.least_lead = std::min(out.least_lead, plan->stats.balance_mean - eplb_stats.balance_mean);
  }
  return out;
}

}  // namespace switchyard::test
