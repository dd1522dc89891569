// Tells workers whose memory holds less than their experts which of them will probably be wanted
// next, so that they read them meanwhile. A hint is lost without harm and never waited for.
//
// Driven by the engine thread; sent() by any.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "router/dispatch/expert_map.h"
#include "services/expertwire/expert_link.h"
#include "services/expertwire/link_set.h"

namespace switchyard::router {

class Hints {
 public:
  explicit Hints(const expertwire::LinkSet& links) : links_(links) {}

  // Looks again at who is short of memory, of the first `links`.
  void Refresh(size_t links);
  // Whether anybody is.
  bool wanted() const { return !tight_.empty(); }
  // To each of them the experts that it holds, the most wanted first: of `experts`, in that order.
  // At most half of what its memory takes, so that a hint leaves room for what is computed with.
  void Send(const ExpertMap& map, int layer, std::span<const int32_t> experts);
  // Experts named to a link since start.
  uint64_t sent(size_t link) const { return sent_[link].load(std::memory_order_relaxed); }

 private:
  struct Tight {
    int16_t link = 0;
    int most = 0;  // experts in a hint
  };

  const expertwire::LinkSet& links_;
  std::vector<Tight> tight_;
  std::array<std::atomic<uint64_t>, expertwire::LinkSet::kLinksMax> sent_{};
};

}  // namespace switchyard::router
