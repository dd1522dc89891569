// The experts' half of a MoE layer, in three steps, so that a micro-batch's rows can be out while
// other work is done: Start (norm, gate, rows to the dispatcher), RunShared, Finish.
//
// The order of the sum is fixed: h = (residual + Σ groups) + shared expert, where the dispatcher
// made the sum over groups.
//
// Where experts are gone and lost_experts.h says that a row goes on without, it is dispatched with
// others; one that was out when they went is sent again, by SendAgain.
//
// Driven by the engine thread. Scratch of MoeLayer is shared by all layers and micro-batches; what
// lives while rows are out is in MoeRows, one a micro-batch.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "router/dispatch/dispatcher.h"
#include "router/graph/context.h"
#include "router/graph/lost_experts.h"
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
  MoeTicket ticket = 0;   // of it, or of those that are out again

  // Rows that were lost, sent once more.
  struct Again {
    std::vector<int32_t> rows;
    std::vector<uint8_t> lost, degraded;
    std::unique_ptr<MoeRows> moe;  // made when it is first wanted
    bool out = false;
  };
  Again again;
};

class MoeLayer {
 public:
  // What a job inherits from its step.
  struct JobTerms {
    uint8_t* lost = nullptr;      // [rows]
    uint8_t* degraded = nullptr;  // [rows]: set to the LostExperts that replaced experts
    int priority = 0;
    absl::Time deadline = absl::InfiniteFuture();
  };

  // `policy`: null for the gate's own choice. Outlives the layer, as the others do.
  MoeLayer(const GraphContext& context, Dispatcher& dispatcher, RoutingPolicy* policy,
           LostExperts lost_experts);

  int64_t width() const { return width_; }  // places for a row's experts: top_k, or the policy's

  void Start(int layer, const LayerWeights& weights, int64_t rows, const float* residual,
             const JobTerms& terms, MoeRows& moe);
  void RunShared(const LayerWeights& weights, int64_t rows, MoeRows& moe);
  // After the dispatcher said that moe.ticket is finished: whether rows that it lost are out again,
  // with other experts, so that moe.ticket is another. Each row is sent again once.
  bool SendAgain(int layer, const LayerWeights& weights, int64_t rows, const JobTerms& terms,
                 MoeRows& moe);
  // After that: adds both sums to the residual.
  void Finish(const LayerWeights& weights, int64_t rows, MoeRows& moe, float* residual);

 private:
  void Send(int layer, int64_t rows, const JobTerms& terms, MoeRows& moe);
  void TakeAgain(const JobTerms& terms, MoeRows& moe);
  void RunGate(int layer, const LayerWeights& weights, int64_t rows, uint8_t* degraded,
               MoeRows& moe);
  void ReplaceGoneOf(int layer, const GateWeights& weights, int64_t rows, int64_t stride,
                     uint8_t* degraded, MoeRows& moe);
  void RunPolicy(const GateWeights& weights, int64_t rows, float* logits, int64_t stride,
                 int32_t* ids, float* chosen);

  const GraphContext& context_;
  Dispatcher& dispatcher_;
  RoutingPolicy* const policy_;
  const LostExperts lost_experts_;
  const int64_t hidden_, experts_, width_;
  Mlp shared_;
  AlignedBuffer logits_;  // f32 [rows, experts], each row followed by the scratch of its selection
};

}  // namespace switchyard::router
