#include "tools/cli/place.h"

#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>

#include "absl/strings/numbers.h"
#include "services/base/file.h"
#include "services/base/status.h"
#include "services/config/units.h"
#include "tools/cli/place_input.h"

namespace switchyard::cli {
namespace {

using placement::PlacementIndex;
using placement::Plan;
using placement::PlanInput;
using placement::PlanStats;
using placement::PlanWorker;

constexpr uint64_t kFileBytesMax = 64 << 20;

struct Question {
  PlanInput input;
  std::optional<PlacementIndex> previous;
  uint64_t heeded_epoch = 0;  // by the server's workers and routers
  std::string load_from;      // for people
};

absl::StatusOr<MeasuredLoad> LoadFrom(const std::string& path, const placement::ExpertGrid& grid) {
  SY_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kFileBytesMax));
  auto load = ParseLoad(text, grid);
  if (!load.ok()) return Annotate(load.status(), path);
  return load;
}

absl::StatusOr<MeasuredLoad> MeasuredFor(const PlaceCommand& command,
                                         const placement::ExpertGrid& grid, std::string* from) {
  MeasuredLoad load{.rows = std::vector<double>(grid.cells()),
                    .held = {},
                    .workers = {},
                    .left_out = {},
                    .epoch = 0};
  if (!command.http.url.empty() && !command.load_file.empty()) {
    return UsageError("--url and --load do not go together; give one");
  }
  if (!command.load_file.empty()) {
    SY_ASSIGN_OR_RETURN(load, LoadFrom(command.load_file, grid));
    *from = command.load_file;
  } else if (!command.http.url.empty()) {
    HttpClient http(command.http);
    SY_ASSIGN_OR_RETURN(const std::string body, http.Get("/admin/experts"));
    auto parsed = ParseLoad(body, grid);
    *from = command.http.url + "/admin/experts";
    if (!parsed.ok()) return Annotate(parsed.status(), *from);
    load = *std::move(parsed);
  } else {
    *from = "none; all experts count alike";
  }
  if (!command.since_file.empty()) {
    SY_ASSIGN_OR_RETURN(const MeasuredLoad earlier, LoadFrom(command.since_file, grid));
    Subtract(earlier, &load);
  }
  return load;
}

// Where a worker's own specification does not say: as given for all, else as the load has it.
absl::Status FindMemory(const PlaceCommand& command, const MeasuredLoad& load,
                        std::vector<PlanWorker>& workers) {
  int64_t for_all = 0;
  if (!command.memory.empty()) {
    const auto bytes = config::ParseBytes(command.memory);
    if (!bytes.ok()) return UsageError("--memory: {}", ToStd(bytes.status().message()));
    for_all = *bytes;
  }
  for (PlanWorker& worker : workers) {
    if (worker.memory_bytes == 0) worker.memory_bytes = for_all;
    const auto said = std::ranges::find(load.workers, worker.address, &PlanWorker::address);
    if (worker.memory_bytes == 0 && said != load.workers.end()) {
      worker.memory_bytes = said->memory_bytes;
    }
    if (worker.memory_bytes > 0) continue;
    return UsageError(
        "worker {}: its memory is not known; give --memory SIZE for all, or "
        "memory=SIZE with the worker",
        worker.address);
  }
  return absl::OkStatus();
}

// As given; else those of the previous document; else those that the load names.
absl::Status FindWorkers(const PlaceCommand& command, const MeasuredLoad& load, Question* q) {
  std::vector<PlanWorker>& workers = q->input.workers;
  for (const std::string& text : command.workers) {
    auto worker = ParseWorker(text);
    if (!worker.ok()) return UsageError("--worker: {}", ToStd(worker.status().message()));
    workers.push_back(*std::move(worker));
  }
  if (!command.workers_file.empty()) {
    SY_ASSIGN_OR_RETURN(const std::string text, ReadFile(command.workers_file, kFileBytesMax));
    const auto of_file = ParseWorkers(text);
    if (!of_file.ok()) return Annotate(of_file.status(), command.workers_file);
    workers.insert(workers.end(), of_file->begin(), of_file->end());
  }
  if (workers.empty() && !command.previous_file.empty()) {
    for (const PlacementIndex::Worker& worker : q->previous->workers()) {
      workers.push_back({.address = worker.address, .node = worker.node, .zone = worker.zone});
    }
  }
  if (workers.empty()) {
    for (const PlanWorker& worker : load.workers) {
      workers.push_back({.address = worker.address, .node = worker.node, .zone = worker.zone});
    }
    if (!load.left_out.empty()) {
      std::cerr << fmt::format("left out, as not up: {}\n", fmt::join(load.left_out, "; "));
    }
  }
  if (workers.empty() && !command.http.url.empty()) {
    return Unavailable("{}: no router answers there that has workers; see {}/ready", q->load_from,
                       command.http.url);
  }
  if (workers.empty()) {
    return UsageError("no workers; give --worker, --workers, --previous or --url");
  }
  return FindMemory(command, load, workers);
}

absl::StatusOr<Question> QuestionOf(const PlaceCommand& command, const ModelSizes& model) {
  Question q;
  q.input.grid = placement::GridOf(model.spec);
  q.input.expert_bytes = model.expert_bytes;
  q.input.experts_per_group = model.spec.experts_per_group();
  q.input.model_fingerprint = model.fingerprint;
  SY_ASSIGN_OR_RETURN(MeasuredLoad load, MeasuredFor(command, q.input.grid, &q.load_from));
  q.input.rows = std::move(load.rows);
  q.heeded_epoch = load.epoch;
  v1::Placement before = load.held;
  if (!command.previous_file.empty()) {
    SY_ASSIGN_OR_RETURN(before, placement::ReadDocument(command.previous_file));
  }
  if (before.workers_size() > 0) {
    auto index = Expand(before, q.input.grid, model.fingerprint);
    if (!index.ok()) return Annotate(index.status(), command.previous_file);
    q.previous = *std::move(index);
  }
  SY_RETURN_IF_ERROR(FindWorkers(command, load, &q));
  return q;
}

absl::StatusOr<int> WidthOf(PlaceCommand& command, const ModelSizes& model, int workers) {
  int width = 0;
  if (command.width == "all") return 0;
  if (command.width != "auto") {
    if (absl::SimpleAtoi(command.width, &width) && width > 0) return width;
    return UsageError("--width: \"{}\"; expected auto, all or a number of workers", command.width);
  }
  const auto rate = [](const std::string& text, const char* flag) -> absl::StatusOr<double> {
    const auto bytes = config::ParseBytes(text);
    if (!bytes.ok()) return Annotate(bytes.status(), flag);
    if (*bytes == 0) return UsageError("{}: is 0", flag);
    return static_cast<double>(*bytes);
  };
  SY_ASSIGN_OR_RETURN(command.costs.link_bytes_per_s, rate(command.link, "--link"));
  SY_ASSIGN_OR_RETURN(command.costs.memory_bytes_per_s, rate(command.bandwidth, "--bandwidth"));
  return BestWidth(WidthCostsOf(model.spec, model.expert_bytes, command.costs),
                   model.spec.gate.groups, workers);
}

std::string Bytes(int64_t bytes) { return config::FormatBytes(bytes); }

// "61.8 % -> 99.7 %", or only the latter.
std::string Change(const std::optional<PlanStats>& before, const PlanStats& after,
                   double PlanStats::*value) {
  const auto percent = [&](const PlanStats& s) {
    return fmt::format("{:.1f} %", 100 * (s.*value));
  };
  return (before ? percent(*before) + " -> " : "") + percent(after);
}

std::string Summary(const Question& q, const Plan& plan, const std::optional<PlanStats>& before) {
  std::set<std::string> nodes;
  int64_t memory = 0;
  for (const PlanWorker& worker : q.input.workers) {
    nodes.insert(worker.node.empty() ? worker.address : worker.node);
    memory += worker.memory_bytes;
  }
  const auto layers = std::ranges::count(q.input.grid.moe_layers, true);
  const double rows = std::accumulate(q.input.rows.begin(), q.input.rows.end(), 0.0);
  const PlanStats& after = plan.stats;
  std::string out;
  const auto line = [&out](std::string_view name, const std::string& value) {
    out += fmt::format("{:<12} {}\n", name, value);
  };
  line("load", fmt::format("{:.0f} rows in {} layers of {} experts (from {})", rows, layers,
                           q.input.grid.experts, q.load_from));
  line("workers", fmt::format("{} on {} nodes, {} for experts; {} used, at most {} of one",
                              q.input.workers.size(), nodes.size(), Bytes(memory),
                              Bytes(after.bytes), Bytes(after.most_bytes)));
  line("replicas", fmt::format("{} of {} experts, each layer on up to {} workers", after.replicas,
                               layers * q.input.grid.experts, after.layer_width_max));
  line("utilisation", Change(before, after, &PlanStats::utilisation));
  line("balance", fmt::format("{}, the least balanced layer {}",
                              Change(before, after, &PlanStats::balance_mean),
                              Change(before, after, &PlanStats::balance_least)));
  line("to load", fmt::format("{} in {} replicas{}", Bytes(plan.bytes_moved), plan.replicas_moved,
                              q.previous ? "" : " (nothing is known to be there)"));
  line("epoch", std::to_string(plan.placement.epoch()));
  return out;
}

nlohmann::ordered_json StatsJson(const PlanStats& stats) {
  return {{"utilisation", stats.utilisation},
          {"balance_mean", stats.balance_mean},
          {"balance_least", stats.balance_least},
          {"balance", stats.balance},
          {"replicas", stats.replicas},
          {"bytes", stats.bytes},
          {"most_bytes_of_a_worker", stats.most_bytes},
          {"width", stats.layer_width_max},
          {"workers_a_gate_group", stats.groups_split}};
}

absl::Status WriteOut(const std::string& path, const std::string& text) {
  if (!path.empty() && path != "-") return WriteFile(path, text);
  std::cout << text;
  return absl::OkStatus();
}

}  // namespace

absl::Status RunPlace(PlaceCommand command) {
  if (command.json_file == "-" && (command.out_file.empty() || command.out_file == "-")) {
    return UsageError("--json - and the placement would both go to standard output; give --out");
  }
  SY_RETURN_IF_ERROR(ReadApiKey(command.http));
  SY_ASSIGN_OR_RETURN(const ModelSizes model, ReadModelSizes(command.model));
  SY_ASSIGN_OR_RETURN(Question q, QuestionOf(command, model));
  q.input.previous = q.previous ? &*q.previous : nullptr;
  SY_ASSIGN_OR_RETURN(command.plan.width,
                      WidthOf(command, model, static_cast<int>(q.input.workers.size())));
  SY_ASSIGN_OR_RETURN(Plan plan, MakePlan(q.input, command.plan));
  // A new document is above whatever workers heed: below it nobody would follow it.
  const bool same = !command.previous_file.empty() && plan.placement.epoch() > 0 &&
                    plan.placement.epoch() == q.previous->epoch();
  if (!same) plan.placement.set_epoch(std::max(plan.placement.epoch(), q.heeded_epoch + 1));
  std::optional<PlanStats> before;
  if (q.previous && CheckCovers(*q.previous).ok()) {
    before = Measure(*q.previous, q.input, command.plan.width);
  }
  SY_RETURN_IF_ERROR(WriteOut(command.out_file, placement::ToJson(plan.placement)));
  std::cerr << Summary(q, plan, before);
  if (command.json_file.empty()) return absl::OkStatus();
  nlohmann::ordered_json report = {{"epoch", plan.placement.epoch()},
                                   {"bytes_moved", plan.bytes_moved},
                                   {"replicas_moved", plan.replicas_moved},
                                   {"after", StatsJson(plan.stats)}};
  if (before) report["before"] = StatsJson(*before);
  return WriteOut(command.json_file, report.dump(2) + "\n");
}

}  // namespace switchyard::cli
