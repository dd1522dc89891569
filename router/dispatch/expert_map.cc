#include "router/dispatch/expert_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "services/expertwire/held.h"

namespace switchyard::router {
namespace {

std::string Range(size_t first, size_t last) {
  return first == last ? fmt::format("{}", first) : fmt::format("{}–{}", first, last);
}

// "17, 40–63" of the experts nobody has; empty if all are there.
std::string MissingOf(std::span<const int16_t> first) {
  std::string out;
  for (size_t e = 0; e < first.size(); ++e) {
    if (first[e] != ExpertMap::kNone) continue;
    size_t last = e;
    while (last + 1 < first.size() && first[last + 1] == ExpertMap::kNone) ++last;
    out += (out.empty() ? "" : ", ") + Range(e, last);
    e = last;
  }
  return out;
}

}  // namespace

ExpertMap::ExpertMap(std::vector<bool> moe_layers, int experts)
    : moe_layers_(std::move(moe_layers)),
      experts_(static_cast<size_t>(experts)),
      holders_(moe_layers_.size() * experts_),
      first_(moe_layers_.size() * experts_, kNone),
      replicated_(moe_layers_.size(), false) {}

void ExpertMap::Add(int16_t link, const expertwire::pb::Hello& hello) {
  const auto add = [&](int at, int expert) {
    const size_t layer = static_cast<size_t>(at);
    if (!moe_layers_[layer]) return;
    const size_t cell = layer * experts_ + static_cast<size_t>(expert);
    Holders& holders = holders_[cell];
    if (!holders.empty() && holders.back() == link) return;  // said twice
    holders.push_back(link);
    first_[cell] = holders.front();
    if (holders.size() > 1) replicated_[layer] = true;
  };
  expertwire::ForEachHeld(hello.held(), static_cast<int>(moe_layers_.size()),
                          static_cast<int>(experts_), add);
}

void ExpertMap::Restrict(const placement::PlacementIndex& placement,
                         std::span<const int> worker_of) {
  for (size_t layer = 0; layer < moe_layers_.size(); ++layer) {
    replicated_[layer] = false;
    for (size_t e = 0; e < experts_; ++e) {
      Holders& holders = holders_[layer * experts_ + e];
      const auto placed = placement.replicas(static_cast<int>(layer), static_cast<int>(e));
      const auto named = [&](int16_t link) {
        const int worker = worker_of[static_cast<size_t>(link)];
        return std::any_of(placed.begin(), placed.end(), [&](uint16_t w) { return w == worker; });
      };
      if (std::any_of(holders.begin(), holders.end(), named)) {
        holders.erase(std::remove_if(holders.begin(), holders.end(), std::not_fn(named)),
                      holders.end());
        first_[layer * experts_ + e] = holders.front();
      }
      if (holders.size() > 1) replicated_[layer] = true;
    }
  }
}

std::string ExpertMap::Missing() const {
  std::string out;
  for (size_t layer = 0; layer < moe_layers_.size();) {
    const std::string missing = moe_layers_[layer] ? MissingOf(first(static_cast<int>(layer))) : "";
    size_t end = layer + 1;
    if (!missing.empty()) {
      while (end < moe_layers_.size() && moe_layers_[end] &&
             MissingOf(first(static_cast<int>(end))) == missing) {
        ++end;
      }
      const bool one = missing.find_first_not_of("0123456789") == std::string::npos;
      out += fmt::format("{}layer{} {}: expert{} {} {} no live worker", out.empty() ? "" : "\n",
                         end - layer > 1 ? "s" : "", Range(layer, end - 1), one ? "" : "s", missing,
                         one ? "has" : "have");
    }
    layer = end;
  }
  return out;
}

ExpertMap MapOf(std::span<const std::unique_ptr<expertwire::ExpertLink>> links,
                const std::vector<bool>& moe_layers, int experts,
                const placement::PlacementIndex* placement) {
  ExpertMap map(moe_layers, experts);
  for (size_t i = 0; i < links.size(); ++i) {
    const expertwire::LinkState state = links[i]->state();
    if (state != expertwire::LinkState::kUp && state != expertwire::LinkState::kDraining) continue;
    if (const auto hello = links[i]->peer()) map.Add(static_cast<int16_t>(i), *hello);
  }
  if (placement != nullptr) {
    std::vector<int> worker_of;
    for (const auto& link : links) worker_of.push_back(WorkerAt(*placement, link->name()));
    map.Restrict(*placement, worker_of);
  }
  return map;
}

int WorkerAt(const placement::PlacementIndex& placement, std::string_view address) {
  const auto& workers = placement.workers();
  const auto found = std::find_if(workers.begin(), workers.end(),
                                  [&](const auto& w) { return w.address == address; });
  return found == workers.end() ? -1 : static_cast<int>(found - workers.begin());
}

}  // namespace switchyard::router
