// The last norm and the vocabulary: logits of the rows that a step asks for, and of no others.
// Driven by the engine thread; owns its scratch memory.
#pragma once

#include <span>

#include "router/graph/context.h"
#include "router/graph/weights.h"

namespace switchyard::router {

class LmHead {
 public:
  explicit LmHead(const GraphContext& context) : context_(context) {}

  // logits [wanted.size(), vocab]; wanted[i] - first_row indexes the residual's rows.
  void Run(const RouterWeights& weights, const float* residual, std::span<const int32_t> wanted,
           int32_t first_row, float* logits);

 private:
  const GraphContext& context_;
  AlignedBuffer rows_;
  InputRows normed_;
};

}  // namespace switchyard::router
