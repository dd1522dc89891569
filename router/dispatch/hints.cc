#include "router/dispatch/hints.h"

#include <algorithm>
#include <utility>

namespace switchyard::router {
namespace {

constexpr uint64_t kMost = 256;  // experts in a hint

}  // namespace

void Hints::Refresh(size_t links) {
  tight_.clear();
  for (size_t i = 0; i < links; ++i) {
    const auto hello = links_.links()[i]->peer();
    if (links_.links()[i]->state() != expertwire::LinkState::kUp || hello == nullptr) continue;
    const uint64_t memory = hello->memory_bytes();
    if (memory == 0 || hello->held_bytes() <= memory || hello->expert_bytes() == 0) continue;
    const uint64_t half = memory / hello->expert_bytes() / 2;
    tight_.push_back(
        {static_cast<int16_t>(i), static_cast<int>(std::clamp<uint64_t>(half, 1, kMost))});
  }
}

void Hints::Send(const ExpertMap& map, int layer, std::span<const int32_t> experts) {
  for (const Tight& tight : tight_) {
    expertwire::pb::Prefetch hint;
    hint.set_layer(layer);
    for (const int32_t e : experts) {
      const auto holders = map.holders(layer, e);
      if (std::find(holders.begin(), holders.end(), tight.link) == holders.end()) continue;
      hint.add_experts(static_cast<uint32_t>(e));
      if (hint.experts_size() == tight.most) break;
    }
    if (hint.experts_size() == 0) continue;
    const auto link = static_cast<size_t>(tight.link);
    sent_[link].fetch_add(static_cast<uint64_t>(hint.experts_size()), std::memory_order_relaxed);
    links_.links()[link]->Prefetch(std::move(hint));
  }
}

}  // namespace switchyard::router
