// What --scheme int4-awq multiplies: the inputs of each MoE layer's MLPs are divided by a scale,
// which the norm before them takes over exactly, and what an expert's down projection multiplies by
// another, which the rows of its up projection take over. The router's gate sees the same inputs
// and is multiplied in return; it is then kept in float32. Dense layers are left as they are.
#pragma once

#include <map>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/quantize/activation_stats.h"

namespace switchyard::quantize {

struct AwqLayer {
  std::vector<float> norm;              // [hidden]: the new weight, as its dtype holds it
  std::vector<float> input;             // [hidden]: columns of gate, up and the router's gate
  std::vector<float> input_importance;  // [hidden] or empty: ImportanceOf
  // Of each expert, the shared one behind the others: columns of down, and 1 / rows of up.
  std::vector<std::vector<float>> down, down_importance;
};

// By layer. `probe` is the one that `stats` were taken of.
absl::StatusOr<std::map<int, AwqLayer>> PlanAwq(ModelProbe& probe, const ActivationStats& stats,
                                                int64_t group);

}  // namespace switchyard::quantize
