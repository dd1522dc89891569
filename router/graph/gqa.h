// Grouped-query attention with the variants of its families: q/k norm per head (Qwen3) or over the
// whole projection (OLMoE) before rope, clamped projections, biases, sinks and sliding windows.
#pragma once

#include "router/graph/attention.h"

namespace switchyard::router {

class GqaAttention : public Attention {
 public:
  explicit GqaAttention(const GraphContext& context);

  void Run(int layer, const LayerWeights& weights, const RowSpan& rows, float* residual) override;

 private:
  void RunTile(int layer, const LayerWeights& weights, const RowSpan& rows, float* residual);
  // q_ [rows, heads, dim]; kv_ [rows, kv_heads of k then of v, dim], the vectors of a cache record.
  void Project(const LayerWeights& weights, int64_t rows, const float* residual);
  void Norm(const GqaWeights& weights, int64_t rows);
  // Clamps, rotates, writes the records.
  void FinishRows(int layer, const RowSpan& rows);
  void Attend(int layer, const GqaWeights& weights, const RowSpan& rows);
  void Output(const GqaWeights& weights, int64_t rows, float* residual);

  const GraphContext& context_;
  const AttentionSpec& spec_;
  const int64_t hidden_, q_width_, kv_width_;  // of q, and of k or v
  InputRows x_, value_in_;
  AlignedBuffer q_, kv_, value_, out_;
};

}  // namespace switchyard::router
