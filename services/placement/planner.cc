#include "services/placement/planner.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "services/base/status.h"
#include "services/config/units.h"
#include "services/placement/layer_plan.h"
#include "services/placement/layer_slots.h"

namespace switchyard::placement {
namespace {

size_t Ix(int i) { return static_cast<size_t>(i); }

// The same on every machine and in every build, unlike std::hash.
uint64_t HashOf(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash ^ hash >> 32;
}

absl::Status CheckWorkers(const std::vector<PlanWorker>& workers, size_t cells) {
  if (workers.empty()) return InvalidArgument("no worker to place experts on");
  if (workers.size() > Ix(kWorkersMax)) {
    return InvalidArgument("{} workers; at most {}", workers.size(), kWorkersMax);
  }
  std::set<std::string_view> seen;
  for (const PlanWorker& worker : workers) {
    SY_RETURN_IF_ERROR(config::CheckAddress(worker.address));
    if (!seen.insert(worker.address).second) {
      return InvalidArgument("worker {} stands twice", worker.address);
    }
    if (worker.memory_bytes < 0) {
      return InvalidArgument("worker {}: {} bytes of memory", worker.address, worker.memory_bytes);
    }
    if (!std::isfinite(worker.rows_per_s) || worker.rows_per_s <= 0) {
      return InvalidArgument("worker {}: {} rows/s; give more than 0", worker.address,
                             worker.rows_per_s);
    }
    if (!worker.barred.empty() && worker.barred.size() != cells) {
      return InvalidArgument("worker {}: {} cells barred or not, of {}", worker.address,
                             worker.barred.size(), cells);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const PlanOptions& options) {
  if (options.min_replicas < 1) {
    return InvalidArgument("min_replicas is {}; give at least 1", options.min_replicas);
  }
  if (!(options.extra_memory >= 0 && options.extra_memory <= kWorkersMax)) {
    return InvalidArgument("extra_memory is {}; give 0 to {}", options.extra_memory, kWorkersMax);
  }
  if (!(options.tolerance >= 0 && options.tolerance < 1)) {
    return InvalidArgument("tolerance is {}; give 0 to less than 1", options.tolerance);
  }
  if (options.max_experts_per_node < 0 || options.width < 0) {
    return InvalidArgument("max_experts_per_node is {} and width {}; give 0 or more",
                           options.max_experts_per_node, options.width);
  }
  if (options.max_experts_per_node > 0 && options.width > 0) {
    return InvalidArgument("a width and a cap of experts a node do not go together; give one");
  }
  return absl::OkStatus();
}

absl::Status CheckInput(const PlanInput& input, const PlanOptions& options) {
  SY_RETURN_IF_ERROR(CheckWorkers(input.workers, input.grid.cells()));
  const ExpertGrid& grid = input.grid;
  if (grid.experts < 1 || std::ranges::count(grid.moe_layers, true) == 0) {
    return InvalidArgument("the model has no experts");
  }
  if (input.experts_per_group < 1 || grid.experts % input.experts_per_group != 0) {
    return InvalidArgument("gate groups of {} do not divide {} experts", input.experts_per_group,
                           grid.experts);
  }
  if (input.rows.size() != grid.cells() || input.expert_bytes.size() != grid.moe_layers.size()) {
    return InvalidArgument("{} rows and {} sizes for {} layers of {} experts", input.rows.size(),
                           input.expert_bytes.size(), grid.layers(), grid.experts);
  }
  for (int layer = 0; layer < grid.layers(); ++layer) {
    const int64_t bytes = input.expert_bytes[Ix(layer)];
    if (grid.moe_layers[Ix(layer)] && (bytes < 1 || bytes > int64_t{1} << 40)) {
      return InvalidArgument("layer {}: an expert of {} bytes", layer, bytes);
    }
    for (int e = 0; e < grid.experts; ++e) {
      const double rows = input.rows[grid.cell(layer, e)];
      if (!std::isfinite(rows) || rows < 0 || rows > 1e18) {
        return InvalidArgument("layer {} expert {}: {} rows", layer, e, rows);
      }
    }
  }
  return CheckOptions(options);
}

// What a plan makes of the previous placement.
enum class Start {
  kNothing,   // looks away from it
  kPrevious,  // changes it
  kMend,      // leaves layers alone that keep the rules, and nodes their ids
};

class Planner {
 public:
  Planner(const PlanInput& input, const PlanOptions& options, Start start)
      : in_(input), options_(options), start_(start), grid_(input.grid), workers_(input.workers) {
    // In an order of their own, so that the caller's does not matter.
    std::ranges::sort(workers_, {}, &PlanWorker::address);
    NumberNodes();
    FindPrevious();
  }

  absl::StatusOr<Plan> Run() {
    SY_ASSIGN_OR_RETURN(slots_, DivideMemory(MemoryInput()));
    if (options_.max_experts_per_node > 0) SY_RETURN_IF_ERROR(ChooseIds());
    held_.assign(workers_.size(), std::vector<bool>(grid_.cells()));
    for (int layer = 0; layer < grid_.layers(); ++layer) {
      if (!grid_.moe_layers[Ix(layer)]) continue;
      const auto planned = PlanLayer(ProblemOf(layer));
      if (!planned.ok()) return Annotate(planned.status(), fmt::format("layer {}", layer));
      for (size_t w = 0; w < workers_.size(); ++w) {
        for (int e = 0; e < grid_.experts; ++e) {
          held_[w][grid_.cell(layer, e)] = (*planned)[w][Ix(e)];
        }
      }
    }
    return Finish();
  }

 private:
  void NumberNodes() {
    std::map<std::string, int> nodes, zones;
    const auto number = [](std::map<std::string, int>* of, const std::string& name) {
      return of->emplace(name, static_cast<int>(of->size())).first->second;
    };
    for (const PlanWorker& worker : workers_) {
      const std::string node = worker.node.empty() ? "worker " + worker.address : worker.node;
      node_.push_back(number(&nodes, node));
      zone_.push_back(number(&zones, worker.zone.empty() ? "node " + node : "zone " + worker.zone));
    }
    nodes_ = static_cast<int>(nodes.size());
  }

  void FindPrevious() {
    previous_.assign(workers_.size(), nullptr);
    if (in_.previous == nullptr) return;
    for (const PlacementIndex::Worker& worker : in_.previous->workers()) {
      const auto at = std::ranges::lower_bound(workers_, worker.address, {}, &PlanWorker::address);
      if (at == workers_.end() || at->address != worker.address) continue;
      previous_[static_cast<size_t>(at - workers_.begin())] = &worker;
    }
  }

  bool WasHere(size_t worker, size_t cell) const {
    return previous_[worker] != nullptr && previous_[worker]->held[cell];
  }

  // The same as far as this plan heeds it.
  bool Before(size_t worker, size_t cell) const {
    return start_ != Start::kNothing && WasHere(worker, cell);
  }
  static bool HasAny(const std::vector<bool>& held) { return std::ranges::count(held, true) > 0; }

  SlotsInput MemoryInput() const {
    SlotsInput out{.workers = {},
                   .expert_bytes = in_.expert_bytes,
                   .experts = grid_.experts,
                   .min_replicas = options_.min_replicas,
                   .extra_memory = options_.extra_memory,
                   .width = options_.width,
                   .previous = {}};
    for (size_t w = 0; w < workers_.size(); ++w) {
      out.workers.push_back({workers_[w].memory_bytes, node_[w], HashOf(workers_[w].address)});
    }
    for (int layer = 0; layer < grid_.layers(); ++layer) {
      if (!grid_.moe_layers[Ix(layer)]) out.expert_bytes[Ix(layer)] = 0;
      std::vector<int>& held = out.previous.emplace_back(workers_.size());
      for (size_t w = 0; w < workers_.size(); ++w) {
        for (int e = 0; e < grid_.experts; ++e) held[w] += Before(w, grid_.cell(layer, e));
      }
    }
    return out;
  }

  // Rows of a layer, with a trace of load for experts that had none: those too should be spread.
  std::vector<double> LoadOf(int layer) const {
    const auto first = in_.rows.begin() + static_cast<ptrdiff_t>(grid_.cell(layer, 0));
    std::vector<double> load(first, first + grid_.experts);
    const double sum = std::accumulate(load.begin(), load.end(), 0.0);
    constexpr double kTrace = 1e-4;
    for (double& rows : load) rows += sum > 0 ? kTrace * sum / grid_.experts : 1;
    return load;
  }

  LayerProblem ProblemOf(int layer) const {
    LayerProblem out{.workers = {},
                     .load = LoadOf(layer),
                     .min_replicas = options_.min_replicas,
                     .replicas_max = slots_.replicas_max[Ix(layer)],
                     .experts_per_group = in_.experts_per_group,
                     .allowed = allowed_,
                     .barred = {},
                     .previous = {},
                     .tolerance = options_.tolerance};
    out.leave_alone = start_ == Start::kMend;
    for (size_t w = 0; w < workers_.size(); ++w) {
      out.workers.push_back(
          {node_[w], zone_[w], workers_[w].rows_per_s, slots_.slots[Ix(layer)][w]});
      std::vector<bool>& held = out.previous.emplace_back(Ix(grid_.experts));
      for (int e = 0; e < grid_.experts; ++e) {
        held[Ix(e)] = Before(w, grid_.cell(layer, e));
      }
      std::vector<bool>& barred = out.barred.emplace_back(Ix(grid_.experts));
      for (int e = 0; e < grid_.experts && !workers_[w].barred.empty(); ++e) {
        barred[Ix(e)] = workers_[w].barred[grid_.cell(layer, e)];
      }
    }
    if (std::ranges::none_of(out.previous, HasAny)) out.previous.clear();
    if (std::ranges::none_of(out.barred, HasAny)) out.barred.clear();
    return out;
  }

  // Where there is a cap of ids a node: which ids each node may hold, in whatever layer. The same
  // question as that of a layer, asked of nodes.
  absl::Status ChooseIds() {
    const int64_t room = int64_t{options_.max_experts_per_node} * nodes_;
    const int64_t need = int64_t{grid_.experts} * std::min(options_.min_replicas, nodes_);
    if (room < need) {
      const int64_t nodes = CeilOf(need, options_.max_experts_per_node);
      return ResourceExhausted(
          "{} experts a node on {} nodes are room for {} of {}: {} nodes are missing; add them or "
          "raise the cap",
          options_.max_experts_per_node, nodes_, room, need, nodes - nodes_);
    }
    LayerProblem ids = IdsProblem();
    std::vector<std::vector<bool>> previous(Ix(nodes_), std::vector<bool>(Ix(grid_.experts)));
    for (size_t w = 0; w < workers_.size(); ++w) {
      for (size_t cell = 0; cell < grid_.cells(); ++cell) {
        if (Before(w, cell)) previous[Ix(node_[w])][cell % Ix(grid_.experts)] = true;
      }
    }
    if (start_ == Start::kMend && Fit(previous, ids)) {
      allowed_ = std::move(previous);
      return absl::OkStatus();
    }
    if (std::ranges::any_of(previous, HasAny)) ids.previous = std::move(previous);
    auto planned = PlanLayer(ids);
    if (!planned.ok()) return Annotate(planned.status(), "ids of the nodes");
    allowed_ = *std::move(planned);
    FillUp(ids, &allowed_);
    return absl::OkStatus();
  }

  // Nodes with room for more ids get those with the most rows a node: layers may choose then.
  static void FillUp(const LayerProblem& ids, std::vector<std::vector<bool>>* of_nodes) {
    std::vector<int> nodes(ids.load.size());
    for (const std::vector<bool>& held : *of_nodes) {
      for (size_t e = 0; e < nodes.size(); ++e) nodes[e] += held[e];
    }
    for (size_t n = 0; n < of_nodes->size(); ++n) {
      std::vector<bool>& held = (*of_nodes)[n];
      for (auto count = std::ranges::count(held, true); count < ids.workers[n].slots; ++count) {
        size_t best = held.size();
        for (size_t e = 0; e < held.size(); ++e) {
          if (held[e]) continue;
          if (best == held.size() || ids.load[e] / nodes[e] > ids.load[best] / nodes[best])
            best = e;
        }
        if (best == held.size()) break;
        held[best] = true, ++nodes[best];
      }
    }
  }

  LayerProblem IdsProblem() const {
    LayerProblem ids{.workers = std::vector<LayerProblem::Worker>(Ix(nodes_)),
                     .load = std::vector<double>(Ix(grid_.experts)),
                     .min_replicas = std::min(options_.min_replicas, nodes_),
                     .replicas_max = options_.max_experts_per_node * nodes_,
                     .experts_per_group = in_.experts_per_group,
                     .allowed = {},
                     .barred = {},
                     .previous = {},
                     .tolerance = options_.tolerance};
    for (LayerProblem::Worker& node : ids.workers) {
      node = {0, 0, 0, std::min(options_.max_experts_per_node, grid_.experts)};
    }
    for (size_t w = 0; w < workers_.size(); ++w) {
      LayerProblem::Worker& node = ids.workers[Ix(node_[w])];
      node.node = node_[w], node.zone = zone_[w], node.speed += workers_[w].rows_per_s;
    }
    for (int layer = 0; layer < grid_.layers(); ++layer) {
      if (!grid_.moe_layers[Ix(layer)]) continue;
      const std::vector<double> load = LoadOf(layer);
      const double sum = std::accumulate(load.begin(), load.end(), 0.0);
      for (size_t e = 0; e < load.size(); ++e) ids.load[e] += load[e] / sum;
      std::vector<int> slots(Ix(nodes_));
      for (size_t w = 0; w < workers_.size(); ++w) {
        slots[Ix(node_[w])] += slots_.slots[Ix(layer)][w];
      }
      for (size_t n = 0; n < slots.size(); ++n) {
        ids.workers[n].slots = std::min(ids.workers[n].slots, slots[n]);
      }
    }
    return ids;
  }

  static bool Fit(const std::vector<std::vector<bool>>& of_nodes, const LayerProblem& ids) {
    std::vector<int> nodes(ids.load.size());
    for (size_t n = 0; n < of_nodes.size(); ++n) {
      if (std::ranges::count(of_nodes[n], true) > ids.workers[n].slots) return false;
      for (size_t e = 0; e < nodes.size(); ++e) nodes[e] += of_nodes[n][e];
    }
    return std::ranges::all_of(nodes, [&](int count) { return count >= ids.min_replicas; });
  }

  static int64_t CeilOf(int64_t a, int64_t b) { return (a + b - 1) / b; }

  absl::StatusOr<Plan> Finish() const {
    Plan plan;
    plan.placement.set_model_fingerprint(in_.model_fingerprint);
    bool changed = in_.previous == nullptr || in_.previous->workers().size() != workers_.size();
    for (size_t w = 0; w < workers_.size(); ++w) {
      v1::WorkerPlacement* worker = plan.placement.add_workers();
      worker->set_worker(workers_[w].address);
      worker->set_node(workers_[w].node);
      worker->set_zone(workers_[w].zone);
      SetHolds(held_[w], grid_, 0, worker);
      const PlacementIndex::Worker* before = previous_[w];
      changed |= before == nullptr || before->held != held_[w] ||
                 before->node != workers_[w].node || before->zone != workers_[w].zone;
      for (int layer = 0; layer < grid_.layers(); ++layer) {
        for (int e = 0; e < grid_.experts; ++e) {
          const size_t cell = grid_.cell(layer, e);
          if (!held_[w][cell] || WasHere(w, cell)) continue;
          ++plan.replicas_moved;
          plan.bytes_moved += in_.expert_bytes[Ix(layer)];
        }
      }
    }
    const uint64_t epoch = in_.previous == nullptr ? 0 : in_.previous->epoch();
    if (epoch > kEpochMax - (changed ? 1 : 0)) {
      return FailedPrecondition(
          "epoch: no placement can follow {}, the highest is {}; start all routers and workers "
          "anew "
          "and begin with 1",
          epoch, kEpochMax);
    }
    plan.placement.set_epoch(epoch + (changed ? 1 : 0));
    SY_ASSIGN_OR_RETURN(const PlacementIndex index, Expand(plan.placement, grid_, ""));
    plan.stats = Measure(index, in_, options_.width);
    return plan;
  }

  const PlanInput& in_;
  const PlanOptions& options_;
  const Start start_;
  const ExpertGrid& grid_;
  std::vector<PlanWorker> workers_;  // by address
  std::vector<int> node_, zone_;     // by worker
  int nodes_ = 0;
  std::vector<const PlacementIndex::Worker*> previous_;  // by worker; null: it is new
  LayerSlots slots_;
  std::vector<std::vector<bool>> allowed_;  // [node][expert]; empty: everywhere
  std::vector<std::vector<bool>> held_;     // [worker][cell]
};

// What one layer's rows make of its workers.
struct LayerLoad {
  double mean = 0, highest = 0;  // seconds
  int workers = 0;               // that it lies on
  int64_t group_parts = 0;       // pairs of a gate group and a worker that holds some of it
};

LayerLoad LoadOf(const PlacementIndex& index, const PlanInput& input, int layer,
                 const std::vector<double>& speeds, bool all_workers) {
  std::vector<double> rows(speeds.size());
  std::vector<bool> lies_on(speeds.size());
  std::set<std::pair<uint16_t, int>> parts;
  double sum = 0;
  for (int e = 0; e < index.grid().experts; ++e) {
    const auto replicas = index.replicas(layer, e);
    const double load = input.rows[index.grid().cell(layer, e)];
    sum += load;
    for (const uint16_t w : replicas) {
      rows[w] += load / static_cast<double>(replicas.size());
      lies_on[w] = true;
      parts.insert({w, e / input.experts_per_group});
    }
  }
  LayerLoad out{.group_parts = static_cast<int64_t>(parts.size())};
  double speed_sum = 0;
  for (size_t w = 0; w < rows.size(); ++w) {
    out.highest = std::max(out.highest, rows[w] / speeds[w]);
    out.workers += lies_on[w];
    if (lies_on[w] || all_workers) speed_sum += speeds[w];
  }
  if (speed_sum > 0) out.mean = sum / speed_sum;
  return out;
}

}  // namespace

PlanStats Measure(const PlacementIndex& index, const PlanInput& input, int width) {
  const ExpertGrid& grid = index.grid();
  std::map<std::string_view, double> known;
  for (const PlanWorker& worker : input.workers) known[worker.address] = worker.rows_per_s;
  std::vector<double> speeds;
  for (const PlacementIndex::Worker& worker : index.workers()) {
    const auto at = known.find(worker.address);
    speeds.push_back(at == known.end() ? 1 : at->second);
  }
  PlanStats out;
  out.balance.assign(grid.moe_layers.size(), 1);
  double means = 0, highests = 0, balances = 0;
  int64_t group_parts = 0;
  int layers = 0;
  for (int layer = 0; layer < grid.layers(); ++layer) {
    if (!grid.moe_layers[Ix(layer)]) continue;
    const LayerLoad load = LoadOf(index, input, layer, speeds, width == 0);
    if (load.highest > 0) out.balance[Ix(layer)] = load.mean / load.highest;
    means += load.mean, highests += load.highest, balances += out.balance[Ix(layer)];
    out.balance_least = std::min(out.balance_least, out.balance[Ix(layer)]);
    out.layer_width_max = std::max(out.layer_width_max, load.workers);
    group_parts += load.group_parts;
    ++layers;
  }
  if (layers > 0) out.balance_mean = balances / layers;
  if (highests > 0) out.utilisation = means / highests;
  const int groups = layers * grid.experts / input.experts_per_group;
  if (groups > 0) out.groups_split = static_cast<double>(group_parts) / groups;
  for (const PlacementIndex::Worker& worker : index.workers()) {
    int64_t bytes = 0;
    for (int layer = 0; layer < grid.layers(); ++layer) {
      const auto first = worker.held.begin() + static_cast<ptrdiff_t>(grid.cell(layer, 0));
      bytes += std::count(first, first + grid.experts, true) * input.expert_bytes[Ix(layer)];
    }
    out.replicas += worker.replicas;
    out.bytes += bytes;
    out.most_bytes = std::max(out.most_bytes, bytes);
  }
  return out;
}

absl::StatusOr<Plan> MakePlan(const PlanInput& input, const PlanOptions& options) {
  SY_RETURN_IF_ERROR(CheckInput(input, options));
  const auto run = [&](Start start) { return Planner(input, options, start).Run(); };
  if (options.max_experts_per_node == 0 || input.previous == nullptr) return run(Start::kPrevious);
  // Another id on a node moves an expert in all layers at once. So what was is mended where it must
  // be, or changed, or planned anew: whichever first is nearly as good as anew.
  SY_ASSIGN_OR_RETURN(Plan anew, run(Start::kNothing));
  constexpr double kNearly = 0.95;
  for (const Start start : {Start::kMend, Start::kPrevious}) {
    auto plan = run(start);
    if (plan.ok() && plan->stats.utilisation >= kNearly * anew.stats.utilisation) return plan;
  }
  return anew;
}

WidthCosts WidthCostsOf(const ModelSpec& spec, std::span<const int64_t> expert_bytes,
                        WidthCosts others) {
  others.top_k = spec.gate.top_k;
  others.experts = spec.experts.count;
  others.expert_bytes = std::ranges::max(expert_bytes);
  others.row_bytes = int64_t{2} * 2 * spec.hidden;  // bf16, out and back
  return others;
}

int BestWidth(const WidthCosts& costs, int gate_groups, int workers) {
  // Experts that a step of that many tokens meets, were all as likely.
  const double missed =
      std::pow(1 - static_cast<double>(costs.top_k) / costs.experts, costs.tokens_per_step);
  const double weights = costs.experts * (1 - missed) * static_cast<double>(costs.expert_bytes);
  const double rows = static_cast<double>(costs.row_bytes) * costs.tokens_per_step * costs.top_k;
  const double divided_s = weights / costs.memory_bytes_per_s + rows / costs.link_bytes_per_s;
  // frame_s * width + divided_s / width is least here.
  const double best = std::sqrt(divided_s / costs.frame_s);
  int width = static_cast<int>(std::lround(std::clamp(best, 1.0, static_cast<double>(workers))));
  if (gate_groups <= 1) return width;
  if (width >= gate_groups) return std::min(workers, width / gate_groups * gate_groups);
  while (gate_groups % width != 0) ++width;
  return std::min(width, workers);
}

}  // namespace switchyard::placement
