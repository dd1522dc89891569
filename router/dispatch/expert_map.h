// Which worker computes which expert: made from what the workers' hellos say they hold. The first
// link in order that is up and holds an expert has it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "services/expertwire/expert_link.h"

namespace switchyard::router {

class ExpertMap {
 public:
  static constexpr int16_t kNone = -1;

  ExpertMap() = default;
  // Without a worker for any expert.
  ExpertMap(std::vector<bool> moe_layers, int experts);

  // Gives `link` what its hello holds and nobody has yet. Ranges outside of the model are ignored.
  void Add(int16_t link, const expertwire::pb::Hello& hello);

  // Link of each expert of a MoE layer, kNone where none is alive.
  std::span<const int16_t> layer(int layer) const {
    return std::span(owner_).subspan(static_cast<size_t>(layer) * experts_, experts_);
  }

  // A line for each MoE layer that lacks experts, layers that lack the same together: "layer 3:
  // experts 17, 40–63 have no live worker", "layers 1–26: experts 0–63 have no live worker".
  std::string Missing() const;

 private:
  std::vector<bool> moe_layers_;
  size_t experts_ = 0;
  std::vector<int16_t> owner_;  // [layers, experts]
};

// Of the links as they stand. Any thread.
ExpertMap MapOf(std::span<const std::unique_ptr<expertwire::ExpertLink>> links,
                const std::vector<bool>& moe_layers, int experts);

}  // namespace switchyard::router
