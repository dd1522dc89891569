#include "router/graph/mla.h"

#include <algorithm>
#include <cstring>

namespace switchyard::router {

MlaAttention::MlaAttention(const GraphContext& context)
    : context_(context),
      spec_(context.spec.attention),
      hidden_(context.spec.hidden),
      heads_(spec_.heads),
      nope_(spec_.qk_nope_head_dim),
      rope_(spec_.qk_rope_head_dim),
      latent_dim_(spec_.kv_lora_rank),
      v_dim_(spec_.v_head_dim) {
  tasks_.reserve(static_cast<size_t>(heads_));
}

void MlaAttention::Run(int layer, const LayerWeights& weights, const RowSpan& rows,
                       float* residual) {
  const int64_t row_bytes = heads_ * (latent_dim_ + rope_) * static_cast<int64_t>(sizeof(float));
  const int64_t tile = TileRows(rows.rows, row_bytes);
  for (int64_t begin = 0; begin < rows.rows; begin += tile) {
    RunTile(layer, weights, rows.Slice(begin, std::min(tile, rows.rows - begin)),
            residual + begin * hidden_);
  }
}

void MlaAttention::RunTile(int layer, const LayerWeights& weights, const RowSpan& rows,
                           float* residual) {
  Project(weights, rows.rows, residual);
  WriteCache(layer, weights.mla, rows);
  Absorb(weights.mla, rows);
  Attend(layer, rows);
  Output(weights.mla, rows.rows, residual);
}

void MlaAttention::Project(const LayerWeights& weights, int64_t rows, const float* residual) {
  const MlaWeights& w = weights.mla;
  const kernels::Compute& compute = context_.compute;
  const kernels::MutableRows x = x_.Reserve(context_.dtype, rows, hidden_);
  compute.RmsNorm(residual, hidden_, rows, hidden_, weights.input_norm, context_.spec.norm_eps, x);

  const int64_t q_width = heads_ * (nope_ + rope_), kv_width = latent_dim_ + rope_;
  float* q = Floats(q_, rows * q_width);
  float* kv = Floats(kv_, rows * kv_width);
  const bool lora = static_cast<bool>(w.q_a);
  const WeightView& first = lora ? w.q_a : w.q;
  float* first_out = lora ? Floats(q_a_, rows * w.q_a.out) : q;
  const kernels::MatMulTask tasks[] = {
      {.x = AsRows(x), .rows = rows, .w = first, .y = first_out, .y_stride = first.out},
      {.x = AsRows(x), .rows = rows, .w = w.kv_a, .y = kv, .y_stride = kv_width}};
  compute.MatMul(tasks);
  if (!lora) return;

  const kernels::MutableRows normed = q_a_norm_.Reserve(context_.dtype, rows, w.q_a.out);
  compute.RmsNorm(first_out, w.q_a.out, rows, w.q_a.out, w.q_a_norm, spec_.lora_norm_eps, normed);
  compute.MatMul({.x = AsRows(normed), .rows = rows, .w = w.q_b, .y = q, .y_stride = q_width});
}

void MlaAttention::WriteCache(int layer, const MlaWeights& weights, const RowSpan& rows) {
  const int64_t width = latent_dim_ + rope_;
  float* kv = kv_.as<float>();
  context_.compute.RmsNorm(kv, width, rows.rows, latent_dim_, weights.kv_a_norm,
                           spec_.lora_norm_eps, {kv, DType::kF32, width});
  ForRows(context_.compute, rows.rows, width, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int32_t position = rows.positions[r];
      float* row = kv + r * width;
      kernels::ApplyRope(row + latent_dim_, 1, rope_, static_cast<int>(rope_),
                         spec_.rope.layout == RopeLayout::kInterleaved, context_.rope.Cos(position),
                         context_.rope.Sin(position));
      kernels::StoreKv(row, width, context_.kv.dtype(),
                       context_.kv.Record(layer, rows.block_tables[r], position));
    }
  });
}

// What the matrices of heads, all like `w`, are multiplied with: float32, but where they meet
// integers of activations.
kernels::Rows MlaAttention::HeadInput(const WeightView& w, const float* x, int64_t rows,
                                      int64_t width) {
  return kernels::MeetsIntegers(w.dtype, w.layout) ? head_in_.From(context_, x, rows, width)
                                                   : kernels::Rows{x, DType::kF32, width};
}

void MlaAttention::Absorb(const MlaWeights& weights, const RowSpan& rows) {
  const int64_t q_width = heads_ * (nope_ + rope_), head_width = latent_dim_ + rope_;
  float* q = q_.as<float>();
  float* query = Floats(query_, rows.rows * heads_ * head_width);
  ForRows(context_.compute, rows.rows, q_width, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int32_t position = rows.positions[r];
      float* row = q + r * q_width;
      kernels::ApplyRope(row + nope_, heads_, nope_ + rope_, static_cast<int>(rope_),
                         spec_.rope.layout == RopeLayout::kInterleaved, context_.rope.Cos(position),
                         context_.rope.Sin(position));
      for (int64_t h = 0; h < heads_; ++h) {
        std::memcpy(query + (r * heads_ + h) * head_width + latent_dim_,
                    row + h * (nope_ + rope_) + nope_, static_cast<size_t>(rope_) * sizeof(float));
      }
    }
  });
  const kernels::Rows x = HeadInput(weights.key_up.front(), q, rows.rows, q_width);
  tasks_.clear();
  for (int64_t h = 0; h < heads_; ++h) {
    tasks_.push_back({.x = Columns(x, h * (nope_ + rope_)),
                      .rows = rows.rows,
                      .w = weights.key_up[static_cast<size_t>(h)],
                      .y = query + h * head_width,
                      .y_stride = heads_ * head_width});
  }
  context_.compute.MatMul(tasks_);
}

void MlaAttention::Attend(int layer, const RowSpan& rows) {
  context_.compute.Attention({.q = query_.as<float>(),
                              .out = Floats(latent_, rows.rows * heads_ * latent_dim_),
                              .rows = rows.rows,
                              .positions = rows.positions,
                              .block_tables = rows.block_tables,
                              .cache = context_.kv.layer(layer),
                              .cache_dtype = context_.kv.dtype(),
                              .block_stride_bytes = context_.kv.block_stride_bytes(),
                              .block_tokens = kBlockTokens,
                              .heads = static_cast<int>(heads_),
                              .kv_heads = 1,
                              .key_dim = static_cast<int>(latent_dim_ + rope_),
                              .value_dim = static_cast<int>(latent_dim_),
                              .values_in_key = true,
                              .scale = spec_.softmax_scale,
                              .window = context_.spec.layers[static_cast<size_t>(layer)].window});
}

void MlaAttention::Output(const MlaWeights& weights, int64_t rows, float* residual) {
  const float* latent = latent_.as<float>();
  float* value = Floats(value_, rows * heads_ * v_dim_);
  const kernels::Rows x = HeadInput(weights.value_up.front(), latent, rows, heads_ * latent_dim_);
  tasks_.clear();
  for (int64_t h = 0; h < heads_; ++h) {
    tasks_.push_back({.x = Columns(x, h * latent_dim_),
                      .rows = rows,
                      .w = weights.value_up[static_cast<size_t>(h)],
                      .y = value + h * v_dim_,
                      .y_stride = heads_ * v_dim_});
  }
  context_.compute.MatMul(tasks_);

  const kernels::Rows values = value_in_.From(context_, value, rows, heads_ * v_dim_);
  float* out = Floats(out_, rows * hidden_);
  context_.compute.MatMul(
      {.x = values, .rows = rows, .w = weights.o, .y = out, .y_stride = hidden_});
  AddRows(context_.compute, residual, out, rows, hidden_);
}

}  // namespace switchyard::router
