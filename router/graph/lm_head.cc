#include "router/graph/lm_head.h"

#include <algorithm>

namespace switchyard::router {

void LmHead::Run(const RouterWeights& weights, const float* residual,
                 std::span<const int32_t> wanted, int32_t first_row, float* logits) {
  if (wanted.empty()) return;
  const int64_t rows = static_cast<int64_t>(wanted.size());
  const int64_t hidden = context_.spec.hidden, vocab = context_.spec.vocab;
  float* x = Floats(rows_, rows * hidden);
  for (int64_t i = 0; i < rows; ++i) {
    std::copy_n(residual + (wanted[static_cast<size_t>(i)] - first_row) * hidden, hidden,
                x + i * hidden);
  }
  const kernels::MutableRows normed = normed_.Reserve(context_.dtype, rows, hidden);
  context_.compute.RmsNorm(x, hidden, rows, hidden, weights.final_norm, context_.spec.norm_eps,
                           normed);
  context_.compute.MatMul(
      {.x = AsRows(normed), .rows = rows, .w = weights.lm_head, .y = logits, .y_stride = vocab});
}

}  // namespace switchyard::router
