// Multi-head latent attention in the absorbed form, at every position: the cache holds one record
// [latent | k_rope] a token, queries are carried into the latent space by k's half of kv_b_proj,
// and results out of it by v's half. Prefill and decode run the same arithmetic, so preemption,
// replay and chunking cannot change a bit.
#pragma once

#include <vector>

#include "router/graph/attention.h"

namespace switchyard::router {

class MlaAttention : public Attention {
 public:
  explicit MlaAttention(const GraphContext& context);

  void Run(int layer, const LayerWeights& weights, const RowSpan& rows, float* residual) override;

 private:
  void RunTile(int layer, const LayerWeights& weights, const RowSpan& rows, float* residual);
  // q_ [rows, heads, nope + rope] and kv_ [rows, latent + rope] from the residual.
  void Project(const LayerWeights& weights, int64_t rows, const float* residual);
  void WriteCache(int layer, const MlaWeights& weights, const RowSpan& rows);
  // query_ [rows, heads, latent + rope] from q_.
  void Absorb(const MlaWeights& weights, const RowSpan& rows);
  kernels::Rows HeadInput(const WeightView& w, const float* x, int64_t rows, int64_t width);
  // latent_ [rows, heads, latent].
  void Attend(int layer, const RowSpan& rows);
  void Output(const MlaWeights& weights, int64_t rows, float* residual);

  const GraphContext& context_;
  const AttentionSpec& spec_;
  const int64_t hidden_, heads_, nope_, rope_, latent_dim_, v_dim_;
  std::vector<kernels::MatMulTask> tasks_;
  InputRows x_, q_a_norm_, head_in_, value_in_;
  AlignedBuffer q_a_, q_, kv_, query_, latent_, value_, out_;
};

}  // namespace switchyard::router
