#include "tools/cli/place_input.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "services/base/json_error.h"
#include "services/base/status.h"
#include "services/checkpoint/content_digest.h"
#include "services/checkpoint/tensor_source.h"
#include "services/config/units.h"
#include "services/model/fingerprint.h"
#include "services/model/memory_plan.h"
#include "services/model/spec_from_hf.h"

namespace switchyard::cli {
namespace {

using nlohmann::json;
using placement::ExpertGrid;
using placement::PlanWorker;

absl::StatusOr<json> ParseJson(std::string_view text) {
  try {
    return json::parse(text);
  } catch (const json::exception& error) {
    return InvalidArgument("{}", NotValidJson(error.what()));
  }
}

// An integer of [0, below) at a key of an object.
absl::StatusOr<int> IndexAt(const json& object, const char* key, int below) {
  const auto at = object.find(key);
  if (at == object.end() || !at->is_number_integer() || *at < 0 || *at >= below) {
    return InvalidArgument("{}: {}; expected 0 to {}", key,
                           at == object.end() ? "missing" : at->dump(), below - 1);
  }
  return at->get<int>();
}

// What a worker of /admin/experts says of itself; what is missing there stays unknown.
PlanWorker FactsOf(const json& worker) {
  PlanWorker facts;
  const auto text = [&](const char* key) {
    const auto at = worker.find(key);
    return at != worker.end() && at->is_string() ? at->get<std::string>() : std::string();
  };
  facts.node = text("node");
  facts.zone = text("zone");
  const auto bytes = worker.find("memory_bytes");
  if (bytes != worker.end() && bytes->is_number_unsigned()) {
    facts.memory_bytes = static_cast<int64_t>(
        std::min<uint64_t>(bytes->get<uint64_t>(), std::numeric_limits<int64_t>::max()));
  }
  return facts;
}

class LoadReader {
 public:
  LoadReader(const ExpertGrid& grid, MeasuredLoad* out) : grid_(grid), out_(*out) {
    out_.rows.assign(grid.cells(), 0);
  }

  absl::Status AddRouter(const json& router) {
    const auto experts = router.is_object() ? router.find("experts") : router.end();
    if (!router.is_object() || experts == router.end() || !experts->is_array()) {
      return InvalidArgument("experts: is missing or no list");
    }
    for (size_t i = 0; i < experts->size(); ++i) {
      SY_RETURN_IF_ERROR(Annotate(AddExpert((*experts)[i]), fmt::format("experts[{}]", i)));
    }
    // What the router follows, which its workers may not have been told yet.
    if (const auto followed = router.find("placement"); followed != router.end()) {
      CountEpoch(*followed, "epoch");
    }
    const auto workers = router.find("workers");
    if (workers == router.end() || !workers->is_array()) return absl::OkStatus();
    for (const json& worker : *workers) {
      if (!worker.is_object()) continue;
      const auto at = worker.find("address");
      if (at == worker.end() || !at->is_string()) continue;
      const auto state = worker.find("state");
      const bool up = state == worker.end() || *state == "up";
      CountEpoch(worker, "assigned_epoch");
      if (up) {
        WorkerAt(at->get<std::string>()).facts = FactsOf(worker);
      } else {
        down_.insert_or_assign(at->get<std::string>(),
                               state->is_string() ? state->get<std::string>() : "");
      }
    }
    return absl::OkStatus();
  }

  void Finish() {
    // Another router may reach it.
    for (const auto& [address, state] : down_) {
      if (!up_.contains(address)) out_.left_out.push_back(fmt::format("{} ({})", address, state));
    }
    for (auto& [address, worker] : up_) {
      worker.facts.address = address;
      out_.workers.push_back(worker.facts);
      if (std::ranges::count(worker.holds, true) == 0) continue;
      v1::WorkerPlacement* held = out_.held.add_workers();
      held->set_worker(address);
      placement::SetHolds(worker.holds, grid_, 0, held);
    }
  }

 private:
  struct Up {
    PlanWorker facts;
    std::vector<bool> holds;  // by cell
  };
  Up& WorkerAt(const std::string& address) {
    Up& up = up_[address];
    up.holds.resize(grid_.cells());
    return up;
  }

  void CountEpoch(const json& from, const char* field) {
    if (!from.is_object()) return;
    const auto epoch = from.find(field);
    if (epoch == from.end() || !epoch->is_number_unsigned()) return;
    out_.epoch = std::max(out_.epoch, epoch->get<uint64_t>());
  }

  absl::Status AddExpert(const json& entry) {
    if (!entry.is_object()) return InvalidArgument("is no object");
    SY_ASSIGN_OR_RETURN(const int layer, IndexAt(entry, "layer", grid_.layers()));
    SY_ASSIGN_OR_RETURN(const int expert, IndexAt(entry, "expert", grid_.experts));
    if (!grid_.moe_layers[static_cast<size_t>(layer)]) {
      return InvalidArgument("layer: {}, a layer without experts", layer);
    }
    const auto rows = entry.find("rows");
    if (rows == entry.end() || !rows->is_number() || rows->get<double>() < 0) {
      return InvalidArgument("rows: {}; expected a number, 0 or more",
                             rows == entry.end() ? "missing" : rows->dump());
    }
    const size_t cell = grid_.cell(layer, expert);
    out_.rows[cell] += rows->get<double>();
    const auto workers = entry.find("workers");
    if (workers == entry.end() || !workers->is_array()) return absl::OkStatus();
    for (const json& address : *workers) {
      if (!address.is_string()) return InvalidArgument("workers: is no list of addresses");
      WorkerAt(address.get<std::string>()).holds[cell] = true;
    }
    return absl::OkStatus();
  }

  const ExpertGrid& grid_;
  MeasuredLoad& out_;
  std::map<std::string, Up> up_;             // by address
  std::map<std::string, std::string> down_;  // states of those that are not up
};

// One of a worker's properties, whichever way it was given.
absl::Status SetField(std::string_view key, const std::string& value, PlanWorker* worker) {
  if (key == "node") {
    worker->node = value;
  } else if (key == "zone") {
    worker->zone = value;
  } else if (key == "memory") {
    SY_ASSIGN_OR_RETURN(worker->memory_bytes, config::ParseBytes(value));
  } else if (key == "rows" || key == "rows_per_s") {
    if (!absl::SimpleAtod(value, &worker->rows_per_s) || !std::isfinite(worker->rows_per_s) ||
        worker->rows_per_s <= 0) {
      return InvalidArgument("{}: \"{}\" is no number above 0", key, value);
    }
  } else {
    return InvalidArgument("unknown \"{}\"; known: node, zone, memory, rows (rows_per_s in a file)",
                           key);
  }
  return absl::OkStatus();
}

absl::StatusOr<PlanWorker> WorkerFrom(const json& entry) {
  PlanWorker worker;
  if (!entry.is_object()) return InvalidArgument("is no object");
  for (const auto& [key, value] : entry.items()) {
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    if (key == "address") {
      worker.address = text;
    } else {
      SY_RETURN_IF_ERROR(SetField(key, text, &worker));
    }
  }
  SY_RETURN_IF_ERROR(Annotate(config::CheckAddress(worker.address), "address"));
  return worker;
}

}  // namespace

absl::StatusOr<MeasuredLoad> ParseLoad(std::string_view text, const ExpertGrid& grid) {
  SY_ASSIGN_OR_RETURN(const json body, ParseJson(text));
  MeasuredLoad load;
  LoadReader reader(grid, &load);
  if (body.is_object() && body.contains("routers") && body["routers"].is_array()) {
    for (size_t i = 0; i < body["routers"].size(); ++i) {
      SY_RETURN_IF_ERROR(
          Annotate(reader.AddRouter(body["routers"][i]), fmt::format("routers[{}]", i)));
    }
  } else {
    SY_RETURN_IF_ERROR(reader.AddRouter(body));
  }
  reader.Finish();
  return load;
}

void Subtract(const MeasuredLoad& earlier, MeasuredLoad* load) {
  for (size_t cell = 0; cell < load->rows.size(); ++cell) {
    if (load->rows[cell] >= earlier.rows[cell]) load->rows[cell] -= earlier.rows[cell];
  }
}

absl::StatusOr<PlanWorker> ParseWorker(std::string_view text) {
  PlanWorker worker;
  const size_t comma = text.find(',');
  worker.address = std::string(text.substr(0, comma));
  SY_RETURN_IF_ERROR(config::CheckAddress(worker.address));
  std::string_view rest = comma == std::string_view::npos ? "" : text.substr(comma + 1);
  while (!rest.empty()) {
    const size_t end = rest.find(',');
    const std::string_view field = rest.substr(0, end);
    rest = end == std::string_view::npos ? "" : rest.substr(end + 1);
    const size_t equals = field.find('=');
    const std::string_view value = equals == std::string_view::npos ? "" : field.substr(equals + 1);
    SY_RETURN_IF_ERROR(
        Annotate(SetField(field.substr(0, equals), std::string(value), &worker), worker.address));
  }
  return worker;
}

absl::StatusOr<std::vector<PlanWorker>> ParseWorkers(std::string_view text) {
  SY_ASSIGN_OR_RETURN(const json body, ParseJson(text));
  if (!body.is_array()) return InvalidArgument("is no list of workers");
  std::vector<PlanWorker> workers;
  for (size_t i = 0; i < body.size(); ++i) {
    auto worker = WorkerFrom(body[i]);
    if (!worker.ok()) return Annotate(worker.status(), fmt::format("[{}]", i));
    workers.push_back(*std::move(worker));
  }
  return workers;
}

absl::StatusOr<ModelSizes> ReadModelSizes(const std::string& path) {
  ModelSizes out;
  SY_ASSIGN_OR_RETURN(out.spec, LoadSpec(path));
  SY_ASSIGN_OR_RETURN(const auto source, checkpoint::OpenCheckpoint(path));
  SY_ASSIGN_OR_RETURN(const std::string digest, checkpoint::ContentDigest(*source));
  out.fingerprint = ModelFingerprint(out.spec, digest);
  const StoredTensorOf stored = [&](std::string_view name) {
    const checkpoint::TensorInfo* info = source->Find(name);
    return info != nullptr ? StoredTensor(info->dtype, info->scale_bytes)
                           : StoredTensor(out.spec.weight_dtype);
  };
  out.expert_bytes = ExpertBytesByLayer(out.spec, stored);
  return out;
}

}  // namespace switchyard::cli
