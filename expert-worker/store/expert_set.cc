#include "expert-worker/store/expert_set.h"

#include <algorithm>
#include <cstdint>

#include "services/base/status.h"
#include "services/config/units.h"

namespace switchyard::worker {
namespace {

std::vector<bool> PartOf(const config::ExpertRanges& part, int experts, int experts_per_group) {
  const int unit = experts / experts_per_group >= part.parts ? experts_per_group : 1;
  const int64_t units = experts / unit, i = part.part, n = part.parts;
  std::vector<bool> held(static_cast<size_t>(experts), false);
  const int64_t first = units * i / n * unit, end = units * (i + 1) / n * unit;
  for (int64_t e = first; e < end; ++e) held[static_cast<size_t>(e)] = true;
  return held;
}

}  // namespace

absl::StatusOr<std::vector<bool>> ParseExpertSet(std::string_view text, int experts,
                                                 int experts_per_group) {
  if (text == "none") return std::vector<bool>(static_cast<size_t>(experts), false);
  const auto said = config::ParseExpertRanges(text);
  if (!said.ok()) return Annotate(said.status(), "--experts");
  if (said->parts > experts) {
    return InvalidArgument("--experts \"{}\": the model has {} experts a layer", text, experts);
  }
  if (said->parts > 0) return PartOf(*said, experts, experts_per_group);
  std::vector<bool> held(static_cast<size_t>(experts), said->ranges.empty());
  for (const auto& [first, last] : said->ranges) {
    if (last >= experts) {
      return InvalidArgument("--experts \"{}\": {} is beyond the model's last expert, {}", text,
                             last, experts - 1);
    }
    std::fill(held.begin() + first, held.begin() + last + 1, true);
  }
  return held;
}

}  // namespace switchyard::worker
