#include "router/graph/gqa.h"

#include <algorithm>

namespace switchyard::router {

GqaAttention::GqaAttention(const GraphContext& context)
    : context_(context),
      spec_(context.spec.attention),
      hidden_(context.spec.hidden),
      q_width_(int64_t{spec_.heads} * spec_.head_dim),
      kv_width_(int64_t{spec_.kv_heads} * spec_.head_dim) {}

void GqaAttention::Run(int layer, const LayerWeights& weights, const RowSpan& rows,
                       float* residual) {
  const int64_t row_bytes =
      std::max(hidden_, q_width_ + 2 * kv_width_) * static_cast<int64_t>(sizeof(float));
  const int64_t tile = TileRows(rows.rows, row_bytes);
  for (int64_t begin = 0; begin < rows.rows; begin += tile) {
    RunTile(layer, weights, rows.Slice(begin, std::min(tile, rows.rows - begin)),
            residual + begin * hidden_);
  }
}

void GqaAttention::RunTile(int layer, const LayerWeights& weights, const RowSpan& rows,
                           float* residual) {
  Project(weights, rows.rows, residual);
  Norm(weights.gqa, rows.rows);
  FinishRows(layer, rows);
  Attend(layer, weights.gqa, rows);
  Output(weights.gqa, rows.rows, residual);
}

void GqaAttention::Project(const LayerWeights& weights, int64_t rows, const float* residual) {
  const GqaWeights& w = weights.gqa;
  const kernels::MutableRows x = x_.Reserve(context_.dtype, rows, hidden_);
  context_.compute.RmsNorm(residual, hidden_, rows, hidden_, weights.input_norm,
                           context_.spec.norm_eps, x);
  float* q = Floats(q_, rows * q_width_);
  float* kv = Floats(kv_, rows * 2 * kv_width_);
  const kernels::MatMulTask tasks[] = {
      {.x = AsRows(x), .rows = rows, .w = w.q, .bias = w.q_bias, .y = q, .y_stride = q_width_},
      {.x = AsRows(x),
       .rows = rows,
       .w = w.k,
       .bias = w.k_bias,
       .y = kv,
       .y_stride = 2 * kv_width_},
      {.x = AsRows(x),
       .rows = rows,
       .w = w.v,
       .bias = w.v_bias,
       .y = kv + kv_width_,
       .y_stride = 2 * kv_width_}};
  context_.compute.MatMul(tasks);
}

void GqaAttention::Norm(const GqaWeights& weights, int64_t rows) {
  if (spec_.qk_norm == QkNorm::kNone) return;
  const kernels::Compute& compute = context_.compute;
  const float eps = context_.spec.norm_eps;
  float* q = q_.as<float>();
  float* kv = kv_.as<float>();
  const int64_t stride = 2 * kv_width_;
  if (spec_.qk_norm == QkNorm::kWholeProjection) {
    compute.RmsNorm(q, q_width_, rows, q_width_, weights.q_norm, eps, {q, DType::kF32, q_width_});
    compute.RmsNorm(kv, stride, rows, kv_width_, weights.k_norm, eps, {kv, DType::kF32, stride});
    return;
  }
  const int64_t dim = spec_.head_dim;
  compute.RmsNorm(q, dim, rows * spec_.heads, dim, weights.q_norm, eps, {q, DType::kF32, dim});
  for (int64_t h = 0; h < spec_.kv_heads; ++h) {
    float* k = kv + h * dim;
    compute.RmsNorm(k, stride, rows, dim, weights.k_norm, eps, {k, DType::kF32, stride});
  }
}

void GqaAttention::FinishRows(int layer, const RowSpan& rows) {
  const int64_t record = 2 * kv_width_, dim = spec_.head_dim;
  const bool interleaved = spec_.rope.layout == RopeLayout::kInterleaved;
  float* q = q_.as<float>();
  float* kv = kv_.as<float>();
  const DType kv_dtype = context_.kv.dtype();
  const int64_t vector_bytes = KvVectorBytes(kv_dtype, dim);
  const auto clip = [limit = spec_.clip_qkv](float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] = x[i] > limit ? limit : (x[i] < -limit ? -limit : x[i]);
  };
  ForRows(context_.compute, rows.rows, q_width_ + record, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int32_t position = rows.positions[r];
      float* q_row = q + r * q_width_;
      float* kv_row = kv + r * record;
      if (spec_.clip_qkv > 0) {
        clip(q_row, q_width_);
        clip(kv_row, record);
      }
      const float* cos = context_.rope.Cos(position);
      const float* sin = context_.rope.Sin(position);
      kernels::ApplyRope(q_row, spec_.heads, dim, spec_.rope.dim, interleaved, cos, sin);
      kernels::ApplyRope(kv_row, spec_.kv_heads, dim, spec_.rope.dim, interleaved, cos, sin);
      std::byte* out = context_.kv.Record(layer, rows.block_tables[r], position);
      for (int64_t v = 0; v < 2 * spec_.kv_heads; ++v) {
        kernels::StoreKv(kv_row + v * dim, dim, kv_dtype, out + v * vector_bytes);
      }
    }
  });
}

void GqaAttention::Attend(int layer, const GqaWeights& weights, const RowSpan& rows) {
  context_.compute.Attention({.q = q_.as<float>(),
                              .out = Floats(value_, rows.rows * q_width_),
                              .rows = rows.rows,
                              .positions = rows.positions,
                              .block_tables = rows.block_tables,
                              .cache = context_.kv.layer(layer),
                              .cache_dtype = context_.kv.dtype(),
                              .block_stride_bytes = context_.kv.block_stride_bytes(),
                              .block_tokens = kBlockTokens,
                              .heads = spec_.heads,
                              .kv_heads = spec_.kv_heads,
                              .key_dim = spec_.head_dim,
                              .value_dim = spec_.head_dim,
                              .values_in_key = false,
                              .scale = spec_.softmax_scale,
                              .window = context_.spec.layers[static_cast<size_t>(layer)].window,
                              .sinks = weights.sinks});
}

void GqaAttention::Output(const GqaWeights& weights, int64_t rows, float* residual) {
  const kernels::Rows x = value_in_.From(context_, value_.as<float>(), rows, q_width_);
  float* out = Floats(out_, rows * hidden_);
  context_.compute.MatMul({.x = x,
                           .rows = rows,
                           .w = weights.o,
                           .bias = weights.o_bias,
                           .y = out,
                           .y_stride = hidden_});
  AddRows(context_.compute, residual, out, rows, hidden_);
}

}  // namespace switchyard::router
