#include "router/graph/moe_layer.h"

#include "router/graph/gate.h"

namespace switchyard::router {

MoeLayer::MoeLayer(const GraphContext& context, Dispatcher& dispatcher, RoutingPolicy* policy)
    : context_(context),
      dispatcher_(dispatcher),
      policy_(policy),
      hidden_(context.spec.hidden),
      experts_(context.spec.experts.count),
      width_(policy == nullptr ? context.spec.gate.top_k : policy->width()),
      shared_(context) {}

void MoeLayer::Start(int layer, const LayerWeights& weights, int64_t rows, const float* residual,
                     const JobTerms& terms, MoeRows& moe) {
  float* normed = Floats(moe.normed, rows * hidden_);
  context_.compute.RmsNorm(residual, hidden_, rows, hidden_, weights.post_attention_norm,
                           context_.spec.norm_eps, {normed, DType::kF32, hidden_});
  RunGate(weights, rows, moe);
  moe.x = moe.wire.From(context_, normed, rows, hidden_);
  moe.ticket = dispatcher_.Start({.layer = layer,
                                  .tokens = rows,
                                  .top_k = static_cast<int>(width_),
                                  .x = moe.x,
                                  .experts = moe.experts.as<int32_t>(),
                                  .weights = moe.weights.as<float>(),
                                  .out = Floats(moe.sum, rows * hidden_),
                                  .lost = terms.lost,
                                  .priority = terms.priority,
                                  .deadline = terms.deadline});
}

void MoeLayer::RunGate(const LayerWeights& weights, int64_t rows, MoeRows& moe) {
  const GateSpec& gate = context_.spec.gate;
  const int64_t stride = experts_ + GateScratch(gate, context_.spec.experts.count) +
                         (policy_ == nullptr ? 0 : policy_->scratch());
  float* logits = Floats(logits_, rows * stride);
  context_.compute.MatMul({.x = {moe.normed.as<float>(), DType::kF32, hidden_},
                           .rows = rows,
                           .w = weights.gate.weight,
                           .bias = weights.gate.bias,
                           .y = logits,
                           .y_stride = stride});
  moe.experts.Reserve(static_cast<size_t>(rows * width_) * sizeof(int32_t));
  int32_t* ids = moe.experts.as<int32_t>();
  float* chosen = Floats(moe.weights, rows * width_);
  if (policy_ != nullptr) {
    RunPolicy(weights.gate, rows, logits, stride, ids, chosen);
    return;
  }
  // Selecting compares each score a few times: some ten element-wise operations each.
  ForRows(context_.compute, rows, 10 * stride, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = logits + r * stride;
      SelectExperts(gate, {row, static_cast<size_t>(experts_)}, weights.gate.correction_bias,
                    row + experts_, ids + r * width_, chosen + r * width_);
    }
  });
}

void MoeLayer::RunPolicy(const GateWeights& weights, int64_t rows, float* logits, int64_t stride,
                         int32_t* ids, float* chosen) {
  ForRows(context_.compute, rows, 10 * stride, [&](int64_t begin, int64_t end) {
    RoutingCounts counts;
    for (int64_t r = begin; r < end; ++r) {
      float* row = logits + r * stride;
      policy_->Select({row, static_cast<size_t>(experts_)}, weights.correction_bias, row + experts_,
                      ids + r * width_, chosen + r * width_, &counts);
    }
    policy_->Count(counts);
  });
  if (!policy_->options().depends_on_batch()) return;
  RoutingCounts counts;
  policy_->LimitLoads(rows, logits, stride, !weights.correction_bias.empty(), ids, chosen, &counts);
  policy_->Count(counts);
}

void MoeLayer::RunShared(const LayerWeights& weights, int64_t rows, MoeRows& moe) {
  if (weights.mlp) shared_.Run(weights.mlp, moe.x, rows, Floats(moe.shared, rows * hidden_));
}

void MoeLayer::Finish(const LayerWeights& weights, int64_t rows, MoeRows& moe, float* residual) {
  AddRows(context_.compute, residual, moe.sum.as<float>(), rows, hidden_);
  if (weights.mlp) AddRows(context_.compute, residual, moe.shared.as<float>(), rows, hidden_);
}

}  // namespace switchyard::router
