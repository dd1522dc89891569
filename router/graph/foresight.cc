#include "router/graph/foresight.h"

#include <algorithm>

#include "router/graph/gate.h"

namespace switchyard::router {
namespace {

std::vector<int> NextMoeLayers(const ModelSpec& spec) {
  std::vector<int> next(spec.layers.size(), -1);
  for (size_t layer = next.size(); layer-- > 1;) {
    next[layer - 1] = spec.layers[layer].moe ? static_cast<int>(layer) : next[layer];
  }
  return next;
}

}  // namespace

Foresight::Foresight(const GraphContext& context, const RouterWeights& weights,
                     Dispatcher& dispatcher)
    : context_(context),
      weights_(weights),
      dispatcher_(dispatcher),
      hidden_(context.spec.hidden),
      experts_(context.spec.experts.count),
      next_(NextMoeLayers(context.spec)) {}

void Foresight::Tell(int layer, int64_t rows, const float* residual) {
  const int next = next_[static_cast<size_t>(layer)];
  if (next < 0 || !dispatcher_.WantsHints()) return;
  Choose(weights_.layers[static_cast<size_t>(next)], rows, residual);
  told_.resize(next_.size() * static_cast<size_t>(experts_), 0);
  uint64_t* told = told_.data() + static_cast<int64_t>(next) * experts_;
  names_.clear();
  for (int32_t e = 0; e < experts_; ++e) {
    if (wanted_[static_cast<size_t>(e)] > 0 && told[e] != step_) names_.push_back(e);
  }
  if (names_.empty()) return;
  for (const int32_t e : names_) told[e] = step_;
  std::stable_sort(names_.begin(), names_.end(), [this](int32_t a, int32_t b) {
    return wanted_[static_cast<size_t>(a)] > wanted_[static_cast<size_t>(b)];
  });
  dispatcher_.Hint(next, names_);
}

void Foresight::Choose(const LayerWeights& next, int64_t rows, const float* residual) {
  const GateSpec& gate = context_.spec.gate;
  float* normed = Floats(normed_, rows * hidden_);
  context_.compute.RmsNorm(residual, hidden_, rows, hidden_, next.post_attention_norm,
                           context_.spec.norm_eps, {normed, DType::kF32, hidden_});
  const int64_t stride = experts_ + GateScratch(gate, context_.spec.experts.count);
  float* logits = Floats(logits_, rows * stride);
  context_.compute.MatMul({.x = {normed, DType::kF32, hidden_},
                           .rows = rows,
                           .w = next.gate.weight,
                           .bias = next.gate.bias,
                           .y = logits,
                           .y_stride = stride});
  const int64_t width = gate.top_k;
  ids_.Reserve(static_cast<size_t>(rows * width) * sizeof(int32_t));
  int32_t* ids = ids_.as<int32_t>();
  float* chosen = Floats(chosen_, rows * width);
  ForRows(context_.compute, rows, 10 * stride, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = logits + r * stride;
      SelectExperts(gate, {row, static_cast<size_t>(experts_)}, next.gate.correction_bias,
                    row + experts_, ids + r * width, chosen + r * width);
    }
  });
  wanted_.assign(static_cast<size_t>(experts_), 0);
  for (int64_t i = 0; i < rows * width; ++i) wanted_[static_cast<size_t>(ids[i])] += chosen[i];
}

}  // namespace switchyard::router
