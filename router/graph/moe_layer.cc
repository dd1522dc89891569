#include "router/graph/moe_layer.h"

#include <algorithm>

#include "router/graph/gate.h"

namespace switchyard::router {

MoeLayer::MoeLayer(const GraphContext& context, Dispatcher& dispatcher, RoutingPolicy* policy,
                   LostExperts lost_experts)
    : context_(context),
      dispatcher_(dispatcher),
      policy_(policy),
      lost_experts_(lost_experts),
      hidden_(context.spec.hidden),
      experts_(context.spec.experts.count),
      width_(policy == nullptr ? context.spec.gate.top_k : policy->width()),
      shared_(context) {}

void MoeLayer::Start(int layer, const LayerWeights& weights, int64_t rows, const float* residual,
                     const JobTerms& terms, MoeRows& moe) {
  float* normed = Floats(moe.normed, rows * hidden_);
  context_.compute.RmsNorm(residual, hidden_, rows, hidden_, weights.post_attention_norm,
                           context_.spec.norm_eps, {normed, DType::kF32, hidden_});
  RunGate(layer, weights, rows, terms.degraded, moe);
  moe.again.out = false;
  Send(layer, rows, terms, moe);
}

void MoeLayer::Send(int layer, int64_t rows, const JobTerms& terms, MoeRows& moe) {
  moe.x = moe.wire.From(context_, moe.normed.as<float>(), rows, hidden_);
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

bool MoeLayer::SendAgain(int layer, const LayerWeights& weights, int64_t rows,
                         const JobTerms& terms, MoeRows& moe) {
  if (lost_experts_ == LostExperts::kFail) return false;
  MoeRows::Again& again = moe.again;
  if (again.out) {
    TakeAgain(terms, moe);
    return false;
  }
  again.rows.clear();
  for (int64_t r = 0; r < rows; ++r) {
    if (terms.lost[r] != 0) again.rows.push_back(static_cast<int32_t>(r));
  }
  if (again.rows.empty()) return false;
  if (again.moe == nullptr) again.moe = std::make_unique<MoeRows>();
  const auto count = static_cast<int64_t>(again.rows.size());
  again.lost.assign(again.rows.size(), 0);
  again.degraded.assign(again.rows.size(), 0);
  float* normed = Floats(again.moe->normed, count * hidden_);
  for (const int32_t r : again.rows) {
    normed = std::copy_n(moe.normed.as<float>() + r * hidden_, hidden_, normed);
  }
  RunGate(layer, weights, count, again.degraded.data(), *again.moe);
  Send(layer, count,
       {.lost = again.lost.data(), .priority = terms.priority, .deadline = terms.deadline},
       *again.moe);
  moe.ticket = again.moe->ticket;
  again.out = true;
  return true;
}

void MoeLayer::TakeAgain(const JobTerms& terms, MoeRows& moe) {
  MoeRows::Again& again = moe.again;
  again.out = false;
  for (size_t i = 0; i < again.rows.size(); ++i) {
    const int64_t from = static_cast<int64_t>(i), to = again.rows[i];
    const auto take = [&](auto* src, int64_t width, auto* dst) {
      std::copy_n(src + from * width, width, dst + to * width);
    };
    take(again.moe->sum.as<float>(), hidden_, moe.sum.as<float>());
    take(again.moe->experts.as<int32_t>(), width_, moe.experts.as<int32_t>());
    take(again.moe->weights.as<float>(), width_, moe.weights.as<float>());
    terms.lost[to] = again.lost[i];
    if (again.degraded[i] != 0) terms.degraded[to] = again.degraded[i];
  }
}

void MoeLayer::RunGate(int layer, const LayerWeights& weights, int64_t rows, uint8_t* degraded,
                       MoeRows& moe) {
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
  } else {
    // Selecting compares each score a few times: some ten element-wise operations each.
    ForRows(context_.compute, rows, 10 * stride, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        float* row = logits + r * stride;
        SelectExperts(gate, {row, static_cast<size_t>(experts_)}, weights.gate.correction_bias,
                      row + experts_, ids + r * width_, chosen + r * width_);
      }
    });
  }
  if (lost_experts_ != LostExperts::kFail) {
    ReplaceGoneOf(layer, weights.gate, rows, stride, degraded, moe);
  }
}

// After the choice of all rows, whose scores are in logits_.
void MoeLayer::ReplaceGoneOf(int layer, const GateWeights& weights, int64_t rows, int64_t stride,
                             uint8_t* degraded, MoeRows& moe) {
  const std::span<const uint8_t> gone = dispatcher_.Gone(layer);
  if (gone.empty()) return;
  const auto width = static_cast<size_t>(width_);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = logits_.as<float>() + r * stride;
    const bool replaced = ReplaceGone(lost_experts_, context_.spec.gate, gone,
                                      {.scores = {row, static_cast<size_t>(experts_)},
                                       .correction_bias = weights.correction_bias,
                                       .scratch = row + experts_,
                                       .ids = {moe.experts.as<int32_t>() + r * width_, width},
                                       .weights = moe.weights.as<float>() + r * width_});
    if (replaced) degraded[r] = static_cast<uint8_t>(lost_experts_);
  }
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
