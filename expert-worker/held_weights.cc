#include "expert-worker/held_weights.h"

#include <vector>

#include "services/base/status.h"
#include "services/checkpoint/weight_check.h"
#include "services/expertwire/held.h"
#include "services/model/tensor_names.h"

namespace switchyard::worker {

absl::Status CheckMemory(uint64_t weight_bytes, uint64_t available, const std::string& experts) {
  if (available == 0 || weight_bytes <= available) return absl::OkStatus();
  constexpr double kMiB = 1 << 20;
  return ResourceExhausted(
      "experts {} take {:.1f} MiB of weights, {:.1f} MiB of memory is available; give this worker "
      "fewer by --experts, or say by --experts-memory how much of it they may take",
      experts.empty() ? "of all layers" : experts, static_cast<double>(weight_bytes) / kMiB,
      static_cast<double>(available) / kMiB);
}

absl::Status CheckHeldWeights(const ModelSpec& spec, const checkpoint::TensorSource& source,
                              const expertwire::pb::Hello& hello,
                              const checkpoint::ProgressFn& progress) {
  std::vector<checkpoint::TensorRange> ranges;
  const auto add = [&](int layer, int expert) {
    for (const TensorSlice& slice : AllSlices(ExpertTensorsOf(spec, layer, expert))) {
      ranges.push_back({.name = slice.tensor.name, .first = slice.first, .count = slice.count});
    }
  };
  expertwire::ForEachHeld(hello.held(), spec.num_layers(), spec.experts.count, add);
  return checkpoint::CheckWeights(source, ranges, progress);
}

}  // namespace switchyard::worker
