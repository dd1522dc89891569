#include "services/placement/layer_slots.h"

#include <algorithm>
#include <numeric>

#include "services/base/status.h"
#include "services/config/units.h"

namespace switchyard::placement {
namespace {

size_t Ix(int i) { return static_cast<size_t>(i); }

class Divider {
 public:
  explicit Divider(const SlotsInput& input)
      : in_(input),
        layers_(static_cast<int>(input.expert_bytes.size())),
        workers_(static_cast<int>(input.workers.size())),
        needed_(input.experts * input.min_replicas) {
    for (const SlotsInput::Worker& worker : input.workers) left_.push_back(worker.memory_bytes);
    out_.slots.assign(Ix(layers_), std::vector<int>(Ix(workers_)));
    out_.replicas_max.assign(Ix(layers_), 0);
  }

  absl::StatusOr<LayerSlots> Run() {
    SY_RETURN_IF_ERROR(CheckTotal());
    ChooseStripes();
    GiveEvenly();
    for (int layer = 0; layer < layers_; ++layer) SY_RETURN_IF_ERROR(GiveNeeded(layer));
    GiveRest();
    const int extra = static_cast<int>(in_.extra_memory * in_.experts + 1e-9);
    for (int layer = 0; layer < layers_; ++layer) {
      const std::vector<int>& slots = out_.slots[Ix(layer)];
      out_.replicas_max[Ix(layer)] =
          std::min(needed_ + extra, std::accumulate(slots.begin(), slots.end(), 0));
    }
    return std::move(out_);
  }

 private:
  bool has_experts(int layer) const { return in_.expert_bytes[Ix(layer)] > 0; }

  absl::Status CheckTotal() const {
    if (in_.min_replicas > workers_) {
      return ResourceExhausted("{} replicas of each expert need as many workers; there are {}",
                               in_.min_replicas, workers_);
    }
    double need = 0, have = 0, one = 0;
    for (const int64_t bytes : in_.expert_bytes) one += static_cast<double>(bytes);
    need = one * needed_;
    // No worker has use for a second copy of anything.
    for (const int64_t bytes : left_) {
      have += std::min(static_cast<double>(bytes), one * in_.experts);
    }
    if (need <= have) return absl::OkStatus();
    return Missing(need, have);
  }

  absl::Status Missing(double need, double have) const {
    return ResourceExhausted(
        "{} of each expert need {}, the workers have room for {}: {} ({} bytes) are missing; add "
        "workers or memory{}",
        in_.min_replicas == 1 ? "one replica" : fmt::format("{} replicas", in_.min_replicas),
        config::FormatBytes(static_cast<int64_t>(need)),
        config::FormatBytes(static_cast<int64_t>(have)),
        config::FormatBytes(static_cast<int64_t>(need - have)), static_cast<int64_t>(need - have),
        in_.min_replicas == 1 ? "" : ", or ask for fewer replicas");
  }

  // The sum would do, but workers hold whole experts.
  absl::Status Fragmented(int layer) const {
    double need = 0, missing = 0;
    for (int l = 0; l < layers_; ++l) {
      const auto bytes = static_cast<double>(in_.expert_bytes[Ix(l)]);
      need += bytes * needed_;
      if (l < layer) continue;
      const std::vector<int>& slots = out_.slots[Ix(l)];
      const int given = std::accumulate(slots.begin(), slots.end(), 0);
      missing += bytes * std::max(needed_ - given, 0);
    }
    return Missing(need, need - missing);
  }

  // Which workers each layer lies on: those that hold most of it already, as long as no worker gets
  // more than one layer beyond its part, then those with the fewest layers, on other nodes first.
  void ChooseStripes() {
    const int with_experts = static_cast<int>(
        std::ranges::count_if(in_.expert_bytes, [](int64_t bytes) { return bytes > 0; }));
    const int width = in_.width == 0 ? workers_ : std::clamp(in_.width, in_.min_replicas, workers_);
    lies_on_.assign(Ix(layers_), std::vector<bool>(Ix(workers_), width == workers_));
    if (width == workers_) return;
    const int part = (with_experts * width + workers_ - 1) / workers_;
    std::vector<int> layers_of(Ix(workers_));
    const auto add = [&](int layer, int worker) {
      lies_on_[Ix(layer)][Ix(worker)] = true;
      ++layers_of[Ix(worker)];
    };
    std::vector<int> order(Ix(workers_));
    std::iota(order.begin(), order.end(), 0);
    for (int layer = 0; layer < layers_ && !in_.previous.empty(); ++layer) {
      if (!has_experts(layer)) continue;
      const std::vector<int>& held = in_.previous[Ix(layer)];
      std::ranges::stable_sort(order, std::greater<>(), [&](int w) { return held[Ix(w)]; });
      int chosen = 0;
      for (const int w : order) {
        if (chosen == width || held[Ix(w)] == 0) break;
        if (layers_of[Ix(w)] <= part) add(layer, w), ++chosen;
      }
    }
    for (int layer = 0; layer < layers_; ++layer) {
      if (!has_experts(layer)) continue;
      for (auto chosen = std::ranges::count(lies_on_[Ix(layer)], true); chosen < width; ++chosen) {
        add(layer, NextOf(layer, layers_of, part));
      }
    }
  }

  int NextOf(int layer, const std::vector<int>& layers_of, int part) const {
    const std::vector<bool>& chosen = lies_on_[Ix(layer)];
    const auto rank = [&](int w) {
      bool node_known = false;
      for (int other = 0; other < workers_; ++other) {
        node_known |= chosen[Ix(other)] && in_.workers[Ix(other)].node == in_.workers[Ix(w)].node;
      }
      return std::tuple(layers_of[Ix(w)] >= part, node_known, layers_of[Ix(w)]);
    };
    int best = -1;
    for (int w = 0; w < workers_; ++w) {
      if (!chosen[Ix(w)] && (best < 0 || rank(w) < rank(best))) best = w;
    }
    return best;
  }

  void Give(int layer, int worker, int64_t slots) {
    out_.slots[Ix(layer)][Ix(worker)] += static_cast<int>(slots);
    left_[Ix(worker)] -= slots * in_.expert_bytes[Ix(layer)];
  }
  // Slots that a worker could still give a layer.
  int64_t Room(int layer, int worker) const {
    const int64_t bytes = in_.expert_bytes[Ix(layer)];
    if (bytes == 0 || !lies_on_[Ix(layer)][Ix(worker)]) return 0;
    return std::min<int64_t>(in_.experts - out_.slots[Ix(layer)][Ix(worker)],
                             left_[Ix(worker)] / bytes);
  }

  // The same number for all layers of a worker. What it is depends on the worker alone, so that
  // others may come and go without moving it.
  void GiveEvenly() {
    for (int w = 0; w < workers_; ++w) {
      int64_t one_each = 0;
      for (int layer = 0; layer < layers_; ++layer) {
        if (lies_on_[Ix(layer)][Ix(w)]) one_each += in_.expert_bytes[Ix(layer)];
      }
      if (one_each == 0) continue;
      const int64_t each = std::min<int64_t>(left_[Ix(w)] / one_each, in_.experts);
      for (int layer = 0; layer < layers_; ++layer) {
        if (Room(layer, w) > 0) Give(layer, w, each);
      }
    }
  }

  // One by one, what the layer still lacks for its least replicas, from whoever has most left; from
  // outside of its stripe if it must.
  absl::Status GiveNeeded(int layer) {
    if (!has_experts(layer)) return absl::OkStatus();
    const std::vector<int>& slots = out_.slots[Ix(layer)];
    for (int given = std::accumulate(slots.begin(), slots.end(), 0); given < needed_; ++given) {
      int best = -1;
      const auto rank = [&](int w) { return std::pair(lies_on_[Ix(layer)][Ix(w)], left_[Ix(w)]); };
      for (int w = 0; w < workers_; ++w) {
        if (left_[Ix(w)] < in_.expert_bytes[Ix(layer)] || slots[Ix(w)] >= in_.experts) continue;
        if (best < 0 || rank(w) > rank(best)) best = w;
      }
      if (best < 0) {
        return Fragmented(layer);
      }
      Give(layer, best, 1);
    }
    return absl::OkStatus();
  }

  // What is left of a worker's memory is less than one slot of each layer: one here and there, for
  // each worker at other layers.
  void GiveRest() {
    for (int w = 0; w < workers_; ++w) {
      for (int i = 0; i < layers_; ++i) {
        const auto first = in_.workers[Ix(w)].name % static_cast<uint64_t>(layers_);
        const int layer = (i + static_cast<int>(first)) % layers_;
        if (Room(layer, w) > 0) Give(layer, w, 1);
      }
    }
  }

  const SlotsInput& in_;
  const int layers_, workers_, needed_;
  std::vector<int64_t> left_;
  std::vector<std::vector<bool>> lies_on_;  // [layer][worker]
  LayerSlots out_;
};

}  // namespace

absl::StatusOr<LayerSlots> DivideMemory(const SlotsInput& input) { return Divider(input).Run(); }

}  // namespace switchyard::placement
