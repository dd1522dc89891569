// The gated MLP that every token takes: of a dense layer, or the shared expert of a MoE layer.
// Driven by the engine thread; owns its scratch memory.
#pragma once

#include "router/graph/context.h"
#include "router/graph/weights.h"

namespace switchyard::router {

class Mlp {
 public:
  explicit Mlp(const GraphContext& context) : context_(context) {}

  // out [rows, hidden] = down(silu(gate(x)) · up(x)); x are rows of GEMM inputs.
  void Run(const MlpWeights& weights, const kernels::Rows& x, int64_t rows, float* out);

 private:
  const GraphContext& context_;
  AlignedBuffer gate_up_;
  InputRows activated_;
};

}  // namespace switchyard::router
