#include "services/placement/document.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "services/base/file.h"
#include "services/base/json_error.h"
#include "services/base/status.h"
#include "services/config/units.h"

namespace switchyard::placement {
namespace {

using Range = config::ExpertRanges::Range;

// "0-15,33" as disjoint ranges, ascending, within [0, limit); "*" as all of that.
absl::StatusOr<std::vector<Range>> RangesFrom(std::string_view text, int limit) {
  if (text == "*") return std::vector<Range>{{0, limit - 1}};
  const auto parsed = config::ParseExpertRanges(text);
  if (!parsed.ok() || parsed->parts > 0 || parsed->ranges.empty()) {
    return InvalidArgument("\"{}\" is no list of ids and ranges, such as 0-15,33, and not *", text);
  }
  std::vector<Range> ranges = parsed->ranges;
  std::ranges::sort(ranges, {}, &Range::first);
  for (size_t i = 0; i < ranges.size(); ++i) {
    if (ranges[i].last >= limit) {
      return InvalidArgument("\"{}\" names {}; the last one is {}", text, ranges[i].last,
                             limit - 1);
    }
    if (i > 0 && ranges[i].first <= ranges[i - 1].last) {
      return InvalidArgument("\"{}\" names {} twice", text, ranges[i].first);
    }
  }
  return ranges;
}

std::string TextOf(const std::vector<Range>& ranges) {
  std::string out;
  for (const Range& range : ranges) {
    if (!out.empty()) out += ',';
    out += std::to_string(range.first);
    if (range.last > range.first) out += fmt::format("-{}", range.last);
  }
  return out;
}

// Of the indices for which `is` holds; "*" if it does for all that are `possible`.
template <typename Is, typename Possible>
std::string TextOf(int count, const Is& is, const Possible& possible) {
  std::vector<Range> ranges;
  bool all = true;
  for (int i = 0; i < count; ++i) {
    if (!is(i)) {
      all &= !possible(i);
    } else if (!ranges.empty() && ranges.back().last == i - 1) {
      ranges.back().last = i;
    } else {
      ranges.push_back({i, i});
    }
  }
  return all ? "*" : TextOf(ranges);
}

std::string NameOf(const v1::Placement& document, int worker) {
  const std::string& address = document.workers(worker).worker();
  return fmt::format("workers[{}]{}", worker, address.empty() ? "" : fmt::format(" ({})", address));
}

absl::Status CheckWorker(const v1::WorkerPlacement& worker) {
  SY_RETURN_IF_ERROR(Annotate(config::CheckAddress(worker.worker()), "worker"));
  for (int i = 0; i < worker.holds_size(); ++i) {
    const v1::HeldSet& set = worker.holds(i);
    SY_RETURN_IF_ERROR(Annotate(RangesFrom(set.layers(), kLayersMax).status(),
                                fmt::format("holds[{}].layers", i)));
    SY_RETURN_IF_ERROR(Annotate(RangesFrom(set.experts(), kExpertsMax).status(),
                                fmt::format("holds[{}].experts", i)));
  }
  return absl::OkStatus();
}

// Marks the cells of one set in `held`; `replicas` counts those of the whole document.
absl::Status Mark(const v1::HeldSet& set, const ExpertGrid& grid, uint64_t* replicas,
                  std::vector<bool>* held) {
  auto layers = RangesFrom(set.layers(), grid.layers());
  if (!layers.ok()) return Annotate(layers.status(), "layers");
  const auto experts = RangesFrom(set.experts(), grid.experts);
  if (!experts.ok()) return Annotate(experts.status(), "experts");
  for (const Range& range : *layers) {
    for (int layer = range.first; layer <= range.last; ++layer) {
      if (!grid.moe_layers[static_cast<size_t>(layer)]) {
        if (set.layers() == "*") continue;
        return InvalidArgument("layers: \"{}\" names {}, a layer without experts", set.layers(),
                               layer);
      }
      for (const Range& ids : *experts) {
        *replicas += static_cast<uint64_t>(ids.last - ids.first + 1);
        if (*replicas > kReplicasMax) {
          return InvalidArgument("more than {} experts of workers in all", kReplicasMax);
        }
        for (int expert = ids.first; expert <= ids.last; ++expert) {
          auto at = held->begin() + static_cast<ptrdiff_t>(grid.cell(layer, expert));
          if (*at) return InvalidArgument("holds layer {} expert {} a second time", layer, expert);
          *at = true;
        }
      }
    }
  }
  return absl::OkStatus();
}

// What a worker holds by version, all of it checked.
absl::StatusOr<std::map<uint32_t, std::vector<bool>>> HeldOf(const v1::WorkerPlacement& worker,
                                                             const ExpertGrid& grid,
                                                             uint64_t* replicas) {
  std::map<uint32_t, std::vector<bool>> held;
  for (int i = 0; i < worker.holds_size(); ++i) {
    const v1::HeldSet& set = worker.holds(i);
    std::vector<bool>& cells = held[set.version()];
    cells.resize(grid.cells());
    SY_RETURN_IF_ERROR(Annotate(Mark(set, grid, replicas, &cells), fmt::format("holds[{}]", i)));
  }
  return held;
}

std::string Quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

ExpertGrid GridOf(const ModelSpec& spec) {
  ExpertGrid grid{.experts = spec.experts.count};
  for (const LayerSpec& layer : spec.layers) grid.moe_layers.push_back(layer.moe);
  return grid;
}

absl::StatusOr<v1::Placement> Parse(std::string_view json) {
  if (json.size() > kDocumentBytesMax) {
    return InvalidArgument("{} bytes; a placement has at most {}", json.size(), kDocumentBytesMax);
  }
  // protobuf draws pictures of syntax errors, in three lines.
  try {
    [[maybe_unused]] const auto parsed = nlohmann::json::parse(json);
  } catch (const nlohmann::json::exception& error) {
    return InvalidArgument("is no placement: {}", NotValidJson(error.what()));
  }
  v1::Placement document;
  const auto status =
      google::protobuf::util::JsonStringToMessage({json.data(), json.size()}, &document);
  if (!status.ok()) {
    const std::string_view said(status.message().data(), status.message().size());
    return InvalidArgument("is no placement: {}", said);
  }
  if (document.workers().empty()) return InvalidArgument("workers: is empty");
  if (document.workers_size() > kWorkersMax) {
    return InvalidArgument("workers: {} of them; at most {}", document.workers_size(), kWorkersMax);
  }
  std::set<std::string_view> seen;
  for (int i = 0; i < document.workers_size(); ++i) {
    SY_RETURN_IF_ERROR(Annotate(CheckWorker(document.workers(i)), NameOf(document, i)));
    if (!seen.insert(document.workers(i).worker()).second) {
      return InvalidArgument("{}: stands twice; put what it holds in one place",
                             NameOf(document, i));
    }
  }
  return document;
}

absl::StatusOr<v1::Placement> ReadDocument(const std::string& path) {
  SY_ASSIGN_OR_RETURN(const std::string json, ReadFile(path, kDocumentBytesMax));
  auto document = Parse(json);
  if (!document.ok()) return Annotate(document.status(), path);
  return document;
}

absl::Status CheckEpoch(const v1::Placement& document) {
  if (document.epoch() == 0) {
    return InvalidArgument("epoch: is 0; give 1 or more, higher with every change");
  }
  if (document.epoch() > kEpochMax) {
    return InvalidArgument("epoch: {} is above {}; give a lower one", document.epoch(), kEpochMax);
  }
  return absl::OkStatus();
}

absl::StatusOr<PlacementIndex> Expand(const v1::Placement& document, const ExpertGrid& grid,
                                      std::string_view model_fingerprint, uint32_t version) {
  if (!document.model_fingerprint().empty() && !model_fingerprint.empty() &&
      document.model_fingerprint() != model_fingerprint) {
    return FailedPrecondition("the placement is of the checkpoint {}, the model is {}",
                              document.model_fingerprint(), model_fingerprint);
  }
  PlacementIndex index;
  index.epoch_ = document.epoch();
  index.grid_ = grid;
  index.first_.assign(grid.cells() + 1, 0);
  uint64_t replicas = 0;
  for (int i = 0; i < document.workers_size(); ++i) {
    const v1::WorkerPlacement& worker = document.workers(i);
    auto held = HeldOf(worker, grid, &replicas);
    if (!held.ok()) return Annotate(held.status(), NameOf(document, i));
    std::vector<bool>& cells = (*held)[version];
    cells.resize(grid.cells());
    PlacementIndex::Worker& out = index.workers_.emplace_back();
    out = {worker.worker(), worker.node(), worker.zone(), std::move(cells), 0};
    for (size_t cell = 0; cell < out.held.size(); ++cell) {
      if (out.held[cell]) ++index.first_[cell + 1], ++out.replicas;
    }
  }
  for (size_t cell = 0; cell < grid.cells(); ++cell) index.first_[cell + 1] += index.first_[cell];
  index.replicas_.resize(index.first_.back());
  std::vector<uint32_t> next(index.first_.begin(), index.first_.end() - 1);
  for (size_t w = 0; w < index.workers_.size(); ++w) {
    const std::vector<bool>& held = index.workers_[w].held;
    for (size_t cell = 0; cell < held.size(); ++cell) {
      if (held[cell]) index.replicas_[next[cell]++] = static_cast<uint16_t>(w);
    }
  }
  return index;
}

absl::Status CheckCovers(const PlacementIndex& index) {
  const ExpertGrid& grid = index.grid();
  int64_t missing = 0;
  std::string first;
  for (int layer = 0; layer < grid.layers(); ++layer) {
    if (!grid.moe_layers[static_cast<size_t>(layer)]) continue;
    std::vector<Range> none;
    for (int expert = 0; expert < grid.experts; ++expert) {
      if (!index.replicas(layer, expert).empty()) continue;
      ++missing;
      if (!none.empty() && none.back().last == expert - 1) {
        none.back().last = expert;
      } else {
        none.push_back({expert, expert});
      }
    }
    if (first.empty() && !none.empty()) {
      first = fmt::format("of layer {} experts {}", layer, TextOf(none));
    }
  }
  if (missing == 0) return absl::OkStatus();
  return FailedPrecondition("no worker holds {} ({} in all layers); add them to some worker", first,
                            missing);
}

void SetHolds(const std::vector<bool>& held, const ExpertGrid& grid, uint32_t version,
              v1::WorkerPlacement* worker) {
  struct Set {
    std::string experts;
    std::vector<bool> layers;
  };
  std::vector<Set> sets;  // in the order of their first layer
  for (int layer = 0; layer < grid.layers(); ++layer) {
    if (!grid.moe_layers[static_cast<size_t>(layer)]) continue;
    const std::string experts = TextOf(
        grid.experts, [&](int e) { return held[grid.cell(layer, e)]; }, [](int) { return true; });
    if (experts.empty()) continue;
    auto at = std::ranges::find(sets, experts, &Set::experts);
    if (at == sets.end())
      at = sets.insert(at, {experts, std::vector<bool>(grid.moe_layers.size())});
    at->layers[static_cast<size_t>(layer)] = true;
  }
  auto* holds = worker->mutable_holds();
  holds->erase(std::remove_if(holds->begin(), holds->end(),
                              [&](const v1::HeldSet& set) { return set.version() == version; }),
               holds->end());
  for (const Set& of : sets) {
    v1::HeldSet* set = holds->Add();
    set->set_layers(TextOf(
        grid.layers(), [&](int l) { return of.layers[static_cast<size_t>(l)]; },
        [&](int l) { return grid.moe_layers[static_cast<size_t>(l)]; }));
    set->set_experts(of.experts);
    set->set_version(version);
  }
}

std::string ToJson(const v1::Placement& document) {
  std::string out = fmt::format("{{\n  \"epoch\": {},\n", document.epoch());
  if (!document.model_fingerprint().empty()) {
    out += fmt::format("  \"model_fingerprint\": {},\n", Quoted(document.model_fingerprint()));
  }
  out += "  \"workers\": [";
  const char* before_worker = "\n    ";
  for (const v1::WorkerPlacement& worker : document.workers()) {
    out += fmt::format("{}{{\"worker\": {}", before_worker, Quoted(worker.worker()));
    before_worker = ",\n    ";
    if (!worker.node().empty()) out += fmt::format(", \"node\": {}", Quoted(worker.node()));
    if (!worker.zone().empty()) out += fmt::format(", \"zone\": {}", Quoted(worker.zone()));
    const char* before_set = ", \"holds\": [\n      ";
    for (const v1::HeldSet& set : worker.holds()) {
      out += fmt::format("{}{{\"layers\": {}, \"experts\": {}", before_set, Quoted(set.layers()),
                         Quoted(set.experts()));
      if (set.version() > 0) out += fmt::format(", \"version\": {}", set.version());
      out += "}";
      before_set = ",\n      ";
    }
    out += worker.holds().empty() ? "}" : "]}";
  }
  out += "]\n}\n";
  return out;
}

}  // namespace switchyard::placement
