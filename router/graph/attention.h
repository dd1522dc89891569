// The attention half of a decoder layer: norm, projections, rotary positions, KV write, attention
// over the paged cache, output projection, residual.
//
// Driven by the engine thread; owns its scratch memory, which is reused from layer to layer.
#pragma once

#include <memory>

#include "router/graph/context.h"
#include "router/graph/weights.h"

namespace switchyard::router {

class Attention {
 public:
  virtual ~Attention() = default;

  // residual [rows, hidden] += attention(norm(residual)). Writes the rows' keys and values into
  // their blocks first, so the rows of a sequence see each other.
  virtual void Run(int layer, const LayerWeights& weights, const RowSpan& rows,
                   float* residual) = 0;
};

// The kind that the spec names. `context` outlives the result.
std::unique_ptr<Attention> MakeAttention(const GraphContext& context);

}  // namespace switchyard::router
