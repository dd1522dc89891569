// The experts' half of a MoE layer, in three steps, so that a micro-batch's rows can be out while
// other work is done: Start (norm, gate, rows to the dispatcher), RunShared, Finish.
//
// The order of the sum is fixed: h = (residual + Σ groups) + shared expert, where the dispatcher
// made the sum over groups.
//
// Driven by the engine thread. Scratch of MoeLayer is shared by all layers and micro-batches; what
// lives while rows are out is in MoeRows, one a micro-batch.
#pragma once

#include <span>

#include "router/dispatch/dispatcher.h"
#include "router/graph/context.h"
#include "router/graph/mlp.h"
#include "router/graph/routing_policy.h"
#include "router/graph/weights.h"

namespace switchyard::router {

struct MoeRows {
  AlignedBuffer normed;   // f32 [rows, hidden]
  InputRows wire;         // the same in the wire dtype
  AlignedBuffer experts;  // int32 [rows, width], ascending, then kNoExpert
  AlignedBuffer weights;  // f32 [rows, width]
  AlignedBuffer sum;      // f32 [rows, hidden], from the dispatcher
  AlignedBuffer shared;   // f32 [rows, hidden]
  kernels::Rows x;        // of the job that is out
  MoeTicket ticket = 0;
};

class MoeLayer {
 public:
  // What a job inherits from its step.
  struct JobTerms {
    uint8_t* lost = nullptr;  // [rows]
    int priority = 0;
    absl::Time deadline = absl::InfiniteFuture();
  };

  // `policy`: null for the gate's own choice. Outlives the layer, as the others do.
  MoeLayer(const GraphContext& context, Dispatcher& dispatcher, RoutingPolicy* policy);

  int64_t width() const { return width_; }  // places for a row's experts: top_k, or the policy's

  void Start(int layer, const LayerWeights& weights, int64_t rows, const float* residual,
             const JobTerms& terms, MoeRows& moe);
  void RunShared(const LayerWeights& weights, int64_t rows, MoeRows& moe);
  // After the dispatcher said that moe.ticket is finished: adds both sums to the residual.
  void Finish(const LayerWeights& weights, int64_t rows, MoeRows& moe, float* residual);

 private:
  void RunGate(const LayerWeights& weights, int64_t rows, MoeRows& moe);
  void RunPolicy(const GateWeights& weights, int64_t rows, float* logits, int64_t stride,
                 int32_t* ids, float* chosen);

  const GraphContext& context_;
  Dispatcher& dispatcher_;
  RoutingPolicy* const policy_;
  const int64_t hidden_, experts_, width_;
  Mlp shared_;
  AlignedBuffer logits_;  // f32 [rows, experts], each row followed by the scratch of its selection
};

}  // namespace switchyard::router
