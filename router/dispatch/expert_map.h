// Which workers can compute which expert: made from what their hellos say they hold.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "services/expertwire/expert_link.h"
#include "services/placement/document.h"

namespace switchyard::router {

class ExpertMap {
 public:
  static constexpr int16_t kNone = -1;
  using Holders = absl::InlinedVector<int16_t, 8>;

  ExpertMap() = default;
  // Without a worker for any expert.
  ExpertMap(std::vector<bool> moe_layers, int experts);

  // Adds `link` to the holders of what its hello says. Ranges outside of the model are ignored.
  void Add(int16_t link, const expertwire::pb::Hello& hello);

  // Holders that `placement` does not name for an expert are passed over, where one that it names
  // is among them. `worker_of` [links] is each link's index in the placement, -1 where it has none.
  void Restrict(const placement::PlacementIndex& placement, std::span<const int> worker_of);

  // The links that hold an expert of a MoE layer, in the order in which they were added.
  std::span<const int16_t> holders(int layer, int expert) const {
    return holders_[static_cast<size_t>(layer) * experts_ + static_cast<size_t>(expert)];
  }
  // The first holder of each expert of a MoE layer, kNone where none is alive.
  std::span<const int16_t> first(int layer) const {
    return std::span(first_).subspan(static_cast<size_t>(layer) * experts_, experts_);
  }
  // Whether some expert of the layer has more than one holder.
  bool replicated(int layer) const { return replicated_[static_cast<size_t>(layer)]; }

  // A line for each MoE layer that lacks experts, layers that lack the same together: "layer 3:
  // experts 17, 40–63 have no live worker", "layers 1–26: experts 0–63 have no live worker".
  std::string Missing() const;

 private:
  std::vector<bool> moe_layers_;
  size_t experts_ = 0;
  std::vector<Holders> holders_;  // [layers, experts]
  std::vector<int16_t> first_;    // [layers, experts]
  std::vector<bool> replicated_;  // [layers]
};

// Of the links that are up or draining, as they stand; restricted to a placement that is not null.
// Any thread.
ExpertMap MapOf(std::span<const std::unique_ptr<expertwire::ExpertLink>> links,
                const std::vector<bool>& moe_layers, int experts,
                const placement::PlacementIndex* placement = nullptr);

// Index of the placement's worker of that address, or -1.
int WorkerAt(const placement::PlacementIndex& placement, std::string_view address);

}  // namespace switchyard::router
