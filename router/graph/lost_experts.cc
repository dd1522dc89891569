#include "router/graph/lost_experts.h"

#include <algorithm>

#include "router/dispatch/dispatcher.h"
#include "router/graph/gate.h"

namespace switchyard::router {
namespace {

float Sum(const float* x, size_t n) {
  float sum = 0;
  for (size_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

// Leaves those that are here; how many.
size_t Keep(std::span<const uint8_t> gone, const GateRow& row, size_t count) {
  size_t kept = 0;
  for (size_t i = 0; i < count; ++i) {
    if (gone[static_cast<size_t>(row.ids[i])]) continue;
    row.ids[kept] = row.ids[i];
    row.weights[kept++] = row.weights[i];
  }
  return kept;
}

}  // namespace

std::string_view Name(LostExperts how) {
  switch (how) {
    case LostExperts::kFail:
      return "fail";
    case LostExperts::kRenormalise:
      return "renormalise";
    case LostExperts::kNextBest:
      return "next-best";
  }
  return "unknown";
}

bool ReplaceGone(LostExperts how, const GateSpec& gate, std::span<const uint8_t> gone,
                 GateRow row) {
  const auto chosen =
      static_cast<size_t>(std::find(row.ids.begin(), row.ids.end(), kNoExpert) - row.ids.begin());
  const bool touched = std::any_of(row.ids.begin(), row.ids.begin() + static_cast<int64_t>(chosen),
                                   [&](int32_t e) { return gone[static_cast<size_t>(e)] != 0; });
  if (!touched || how == LostExperts::kFail) return false;
  size_t left = 0;
  if (how == LostExperts::kNextBest) {
    left = SelectWithout(gate, gone, row.scores, row.correction_bias, row.scratch,
                         row.ids.first(chosen), row.weights);
  } else {
    const float before = Sum(row.weights, chosen);
    left = Keep(gone, row, chosen);
    const float after = Sum(row.weights, left);
    for (size_t i = 0; i < left && after > 0; ++i) row.weights[i] *= before / after;
  }
  std::fill(row.ids.begin() + static_cast<int64_t>(left), row.ids.end(), kNoExpert);
  std::fill(row.weights + left, row.weights + row.ids.size(), 0.0f);
  return true;
}

}  // namespace switchyard::router
