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

// Where the token at `position` of the sequence with this block table lies in a layer's cache.
inline std::byte* KvRecord(KvStorage& kv, std::byte* layer, const int32_t* block_table,
                           int32_t position, int64_t record_elements) {
  return layer + block_table[position / kBlockTokens] * kv.block_stride_bytes() +
         (position % kBlockTokens) * record_elements * static_cast<int64_t>(SizeOf(kv.dtype()));
}

}  // namespace switchyard::router
