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

bool Failed(const BalanceWorker& worker, size_t cell) {
  return !worker.failed.empty() && worker.failed[cell] && !worker.held[cell];
}

// By cell, how many workers can hold it.
std::vector<int> HoldersPossible(const BalanceInput& input) {
  std::vector<int> out(input.rows.size());
  for (size_t cell = 0; cell < out.size(); ++cell) {
    for (const BalanceWorker& worker : input.workers) out[cell] += !Failed(worker, cell);
  }
  return out;
}

placement::PlanInput QuestionOf(const BalanceModel& model, const BalanceInput& input,
                                const PlacementIndex& now, const std::vector<int>& possible,
                                int min_replicas) {
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
    std::vector<bool>& barred = out.workers.back().barred;
    for (size_t cell = 0; cell < possible.size(); ++cell) {
      // Where too few can have it no plan would be possible at all: GiveToAllPossible mends those.
      if (!Failed(worker, cell) || possible[cell] < min_replicas) continue;
      barred.resize(possible.size());
      barred[cell] = true;
    }
  }
  return out;
}

// An expert that fewer workers can have than there should be replicas lies at all of these.
void GiveToAllPossible(const BalanceModel& model, const BalanceInput& input,
                       const std::vector<int>& possible, int min_replicas,
                       v1::Placement* placement) {
  const auto scarce = [&](int cells) { return cells > 0 && cells < min_replicas; };
  if (std::ranges::none_of(possible, scarce)) return;
  const auto planned = placement::Expand(*placement, model.grid, "");
  if (!planned.ok()) return;  // the plan's own
  for (size_t w = 0; w < planned->workers().size(); ++w) {
    const PlacementIndex::Worker& worker = planned->workers()[w];
    const auto known = std::ranges::find(input.workers, worker.address, &BalanceWorker::address);
    std::vector<bool> held = worker.held;
    for (size_t cell = 0; cell < held.size(); ++cell) {
      const bool moe = model.grid.moe_layers[cell / static_cast<size_t>(model.grid.experts)];
      if (moe && scarce(possible[cell])) held[cell] = !Failed(*known, cell);
    }
    placement::SetHolds(held, model.grid, 0, placement->mutable_workers(static_cast<int>(w)));
  }
}

// The fewest replicas that an expert has, of those that could have more; `enough` if none does.
int64_t FewestReplicas(const PlacementIndex& index, const std::vector<int>& possible, int enough) {
  const placement::ExpertGrid& grid = index.grid();
  auto fewest = static_cast<size_t>(enough);
  for (int layer = 0; layer < grid.layers(); ++layer) {
    if (!grid.moe_layers[static_cast<size_t>(layer)]) continue;
    for (int e = 0; e < grid.experts; ++e) {
      const size_t replicas = index.replicas(layer, e).size();
      if (replicas < static_cast<size_t>(possible[grid.cell(layer, e)])) {
        fewest = std::min(fewest, replicas);
      }
    }
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
                                  const PlacementIndex& now, const std::vector<int>& possible,
                                  int min_replicas, const placement::Plan& plan,
                                  BalanceVerdict& verdict) {
  const int64_t fewest = FewestReplicas(now, possible, min_replicas);
  if (fewest == 0) return "experts have no worker";
  if (input.stalled) return "workers do not heed the placement that is followed";
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
  placement::PlanOptions wanted = options.plan;
  wanted.min_replicas = std::min(wanted.min_replicas, workers);
  const std::vector<int> possible = HoldersPossible(input);
  const placement::PlanInput question =
      QuestionOf(model, input, now, possible, wanted.min_replicas);
  if (options.best_width) {
    wanted.width = placement::BestWidth(model.costs, model.gate_groups, workers);
  }
  SY_ASSIGN_OR_RETURN(placement::Plan plan, placement::MakePlan(question, wanted));
  BalanceVerdict verdict{.planned = plan.stats.utilisation, .bytes = plan.bytes_moved};
  // An expert that nobody can have is as if it were not there.
  if (FewestReplicas(now, possible, wanted.min_replicas) > 0) {
    verdict.utilisation = placement::Measure(now, question, wanted.width).utilisation;
  }
  if (input.stalled) plan.placement.set_epoch(std::max(plan.placement.epoch(), input.epoch + 1));
  const auto reason = Reason(input, options, now, possible, wanted.min_replicas, plan, verdict);
  verdict.move = reason.has_value() && plan.placement.epoch() > input.epoch;
  verdict.why = verdict.move ? *reason
                             : fmt::format("nothing is to be gained: utilisation is {:.1f} %",
                                           100 * verdict.utilisation);
  if (verdict.move) {
    verdict.why += fmt::format("; {} to load", config::FormatBytes(verdict.bytes));
    GiveToAllPossible(model, input, possible, wanted.min_replicas, &plan.placement);
    verdict.placement = std::move(plan.placement);
  }
  return verdict;
}

}  // namespace switchyard::router
