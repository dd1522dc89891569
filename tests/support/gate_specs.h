// Gates of the DeepSeek families, which choose among groups first.
#pragma once

#include "services/model/spec.h"

namespace switchyard::testing {

inline GateSpec V3(int groups, int topk_groups, int top_k) {
  return {.score = GateScore::kSigmoid,
          .group_score = GroupScore::kTop2Sum,
          .groups = groups,
          .topk_groups = topk_groups,
          .top_k = top_k,
          .correction_bias = true,
          .normalise = true,
          .normalise_eps = 1e-20f,
          .scale = 2.5f};
}

inline GateSpec V2(int groups, int topk_groups, int top_k) {
  return {.score = GateScore::kSoftmax,
          .group_score = GroupScore::kMax,
          .groups = groups,
          .topk_groups = topk_groups,
          .top_k = top_k,
          .scale = 16};
}

}  // namespace switchyard::testing
