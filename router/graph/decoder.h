// The forward pass of every family, as a stage machine over one or two micro-batches:
//
//   kAttention ──dense layer──▶ kAttention of the next layer
//        │ MoE layer: rows are sent
//        ▼
//    kShared ──▶ kExperts ──(dispatcher finished)──▶ kAttention of the next layer ──▶ kHead ──▶
//    kDone
//
// Advance computes until every micro-batch is in kExperts with its rows out, or all are done: with
// two micro-batches the attention of one runs while the rows of the other are at the experts. A
// row's numbers depend on its own sequence alone, so the split changes no bit.
//
// In bfloat16 mode the residual stream, norms, gate, softmax and logits are fp32; GEMM inputs and
// wire rows are bf16. In float32 mode everything is fp32. KV is what its storage says. Scratch
// memory grows to the largest step seen and is kept: a steady state allocates nothing.
//
// Driven by the engine thread alone.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "router/dispatch/dispatcher.h"
#include "router/graph/attention.h"
#include "router/graph/context.h"
#include "router/graph/foresight.h"
#include "router/graph/lm_head.h"
#include "router/graph/mlp.h"
#include "router/graph/model_runner.h"
#include "router/graph/moe_layer.h"
#include "router/graph/weights.h"

namespace switchyard::router {

struct DecoderOptions {
  // Of GEMM inputs and wire rows: kBF16 or kF32. The KV storage has its own.
  DType dtype = DType::kBF16;
  // Positions that a sequence may have; 0: the model's max_position.
  int64_t max_positions = 0;
  RoutingOptions routing;  // valid for the model
  LostExperts lost_experts = LostExperts::kFail;

  absl::Status Validate() const;
};

class Decoder : public ModelRunner {
 public:
  // All but the options outlive the decoder. Options must be valid (checked).
  Decoder(const DecoderOptions& options, const ModelSpec& spec, const RouterWeights& weights,
          const kernels::Compute& compute, KvStorage& kv, Dispatcher& dispatcher);

  const ModelSpec& spec() const override { return spec_; }
  void Start(const StepBatch& batch) override;
  Progress Advance() override;
  void Wait(absl::Time until) override;
  void Abandon() override;
  const StepResult& result() const override { return result_; }
  void CopyBlock(int32_t from, int32_t to) override { context_.kv.CopyBlock(from, to); }
  uint64_t progress() const override { return context_.compute.pool().progress(); }

  // Places for a token's experts in a step's trace: top_k, or one more where the policy adds one.
  int routing_width() const { return static_cast<int>(moe_.width()); }
  // Null where the gate's own choice stands.
  const RoutingPolicy* routing() const { return routing_.get(); }

 private:
  enum class Stage { kAttention, kShared, kExperts, kHead, kDone };

  // A contiguous part of the batch, cut between sequences.
  struct MicroBatch {
    int64_t begin = 0, rows = 0;
    size_t logits_begin = 0, logits_end = 0;  // into batch.logit_rows
    size_t trace_begin = 0, trace_end = 0;    // into batch.trace_rows
    Stage stage = Stage::kDone;
    int layer = 0;
    int moe_layer = 0;       // how many MoE layers came before
    AlignedBuffer residual;  // f32 [rows, hidden]
    MoeRows moe;
  };

  void BeginPart(int64_t begin, int64_t end, MicroBatch& part);
  void Embed(MicroBatch& part);
  // Takes a micro-batch one stage further; false if it has to wait.
  bool Step(MicroBatch& part);
  void RunAttention(MicroBatch& part);
  void RunDense(MicroBatch& part);
  void Trace(const MicroBatch& part);
  MoeLayer::JobTerms TermsOf(const MicroBatch& part);
  void NextLayer(MicroBatch& part);
  const LayerWeights& LayerOf(const MicroBatch& part) const;

  const ModelSpec& spec_;
  const RouterWeights& weights_;
  Dispatcher& dispatcher_;
  const int moe_layers_;
  RopeTable rope_;
  const GraphContext context_;
  const std::unique_ptr<Attention> attention_;
  const std::unique_ptr<RoutingPolicy> routing_;
  MoeLayer moe_;
  Foresight foresight_;
  Mlp dense_;
  LmHead head_;

  const StepBatch* batch_ = nullptr;
  MicroBatch parts_[2];
  AlignedBuffer dense_out_, logits_;
  InputRows dense_in_;
  StepResult result_;
};

}  // namespace switchyard::router
