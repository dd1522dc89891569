#include "router/fleet/balance.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "services/base/status.h"
#include "services/config/units.h"

namespace switchyard::router {
namespace {

using placement::PlacementIndex;

uint64_t BytesOf(const BalanceModel& model, const std::vector<bool>& held) {
  uint64_t bytes = 0;
  for (size_t cell = 0; cell < held.size(); ++cell) {
    const size_t layer = cell / static_cast<size_t>(model.grid.experts);
    if (held[cell]) bytes += static_cast<uint64_t>(model.expert_bytes[layer]);
  }
  return bytes;
}

// What the workers hold, as a placement.
absl::StatusOr<PlacementIndex> HeldNow(const BalanceModel& model, const BalanceInput& input) {
  v1::Placement document;
  document.set_epoch(input.epoch);
  for (const BalanceWorker& worker : input.workers) {
    v1::WorkerPlacement& placed = *document.add_workers();
    placed.set_worker(worker.address);
    placed.set_node(worker.node);
    placed.set_zone(worker.zone);
    placement::SetHolds(worker.held, model.grid, 0, &placed);
  }
  return placement::Expand(document, model.grid, "");
}

placement::PlanInput QuestionOf(const BalanceModel& model, const BalanceInput& input,
                                const PlacementIndex& now) {
  placement::PlanInput out{.grid = model.grid,
                           .rows = input.rows,
                           .expert_bytes = model.expert_bytes,
                           .experts_per_group = model.experts_per_group,
                           .model_fingerprint = model.fingerprint,
                           .previous = &now};
  // Rows that have not been seen yet may come: no expert counts for nothing.
  for (double& rows : out.rows) rows += 1;
  for (const BalanceWorker& worker : input.workers) {
    const uint64_t memory =
        worker.memory_bytes > 0 ? worker.memory_bytes : BytesOf(model, worker.held);
    out.workers.push_back({.address = worker.address,
                           .node = worker.node,
                           .zone = worker.zone,
                           .memory_bytes = static_cast<int64_t>(memory),
                           .rows_per_s = worker.speed});
  }
  return out;
}

// The fewest replicas that an expert has.
int64_t FewestReplicas(const PlacementIndex& index) {
  const placement::ExpertGrid& grid = index.grid();
  size_t fewest = index.workers().size();
  for (int layer = 0; layer < grid.layers(); ++layer) {
    if (!grid.moe_layers[static_cast<size_t>(layer)]) continue;
    for (int e = 0; e < grid.experts; ++e)
      fewest = std::min(fewest, index.replicas(layer, e).size());
  }
  return static_cast<int64_t>(fewest);
}

int64_t Replicas(const PlacementIndex& index) {
  int64_t all = 0;
  for (const PlacementIndex::Worker& worker : index.workers()) all += worker.replicas;
  return all;
}

// Why to move; none: there is no reason to.
std::optional<std::string> Reason(const BalanceInput& input, const BalanceOptions& options,
                                  const PlacementIndex& now, int min_replicas,
                                  const placement::Plan& plan, BalanceVerdict& verdict) {
  const int64_t fewest = FewestReplicas(now);
  if (fewest == 0) return "experts have no worker";
  if (fewest < min_replicas) {
    return fmt::format("experts have {} of {} replicas", fewest, min_replicas);
  }
  if (verdict.planned >= verdict.utilisation + options.gain) {
    return fmt::format("utilisation {:.1f} % -> {:.1f} %", 100 * verdict.utilisation,
                       100 * verdict.planned);
  }
  const int64_t held = Replicas(now);
  if (input.followed_replicas > 0 && held > input.followed_replicas && held > plan.stats.replicas &&
      plan.replicas_moved == 0) {
    verdict.trims = true;
    return fmt::format("{} replicas are not needed any more", held - plan.stats.replicas);
  }
  return std::nullopt;
}

}  // namespace

BalanceModel BalanceModelOf(const ModelSpec& spec, const std::string& fingerprint,
                            const StoredTensorOf& stored) {
  BalanceModel model{.grid = placement::GridOf(spec),
                     .expert_bytes = ExpertBytesByLayer(spec, stored),
                     .experts_per_group = spec.experts_per_group(),
                     .gate_groups = spec.gate.groups,
                     .fingerprint = fingerprint};
  model.costs = placement::WidthCostsOf(spec, model.expert_bytes);
  return model;
}

absl::StatusOr<BalanceVerdict> Balance(const BalanceModel& model, const BalanceInput& input,
                                       const BalanceOptions& options) {
  const auto workers = static_cast<int>(input.workers.size());
  SY_ASSIGN_OR_RETURN(const PlacementIndex now, HeldNow(model, input));
  const placement::PlanInput question = QuestionOf(model, input, now);
  placement::PlanOptions wanted = options.plan;
  wanted.min_replicas = std::min(wanted.min_replicas, workers);
  if (options.best_width) {
    wanted.width = placement::BestWidth(model.costs, model.gate_groups, workers);
  }
  SY_ASSIGN_OR_RETURN(placement::Plan plan, placement::MakePlan(question, wanted));
  BalanceVerdict verdict{.planned = plan.stats.utilisation, .bytes = plan.bytes_moved};
  if (placement::CheckCovers(now).ok()) {
    verdict.utilisation = placement::Measure(now, question, wanted.width).utilisation;
  }
  const auto reason = Reason(input, options, now, wanted.min_replicas, plan, verdict);
  verdict.move = reason.has_value() && plan.placement.epoch() > input.epoch;
  verdict.why = verdict.move ? *reason
                             : fmt::format("nothing is to be gained: utilisation is {:.1f} %",
                                           100 * verdict.utilisation);
  if (verdict.move) {
    verdict.why += fmt::format("; {} to load", config::FormatBytes(verdict.bytes));
    verdict.placement = std::move(plan.placement);
  }
  return verdict;
}

}  // namespace switchyard::router
