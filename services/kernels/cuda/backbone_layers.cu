// What a layer of the backbone launches, in order.
#include <algorithm>

#include "services/kernels/cuda/backbone.cuh"
#include "services/kernels/cuda/backbone.h"
#include "services/kernels/cuda/expert_block.h"
#include "services/kernels/cuda/gate.cuh"
#include "services/kernels/cuda/routed_pairs.cuh"

using namespace switchyard::cuda;

// Goes on to the next launch, or gives the error of this one.
#define SY_CUDA_NEXT(call)                                  \
  do {                                                      \
    const cudaError_t sy_cuda_error = (call);               \
    if (sy_cuda_error != cudaSuccess) return sy_cuda_error; \
  } while (false)

cudaError_t SyCudaBackbone::Multiply(const SyCudaWeights& w, const Matrix* matrices,
                                     const Runs& runs, const uint16_t* x, int64_t x_stride, void* y,
                                     int64_t y_stride, bool activate) {
  const MatMulArgs args{.matrices = matrices,
                        .runs = runs.device,
                        .shape = ShapeOf(w.shape),
                        .x = x,
                        .x_stride = x_stride,
                        .y = y,
                        .y_stride = y_stride,
                        .pair_step = runs.step};
  const Epilogue epilogue = activate ? Epilogue::kActivate : Epilogue::kStore;
  switch (args.shape.format) {
    case Format::kBf16:
      return LaunchGroupedMatMul<Format::kBf16>(runs.tile, epilogue, args, runs.count, stream_);
    case Format::kE4M3:
      return LaunchGroupedMatMul<Format::kE4M3>(runs.tile, epilogue, args, runs.count, stream_);
    case Format::kI8:
      return LaunchGroupedMatMul<Format::kI8>(runs.tile, epilogue, args, runs.count, stream_);
    case Format::kI4:
      return LaunchGroupedMatMul<Format::kI4>(runs.tile, epilogue, args, runs.count, stream_);
    default:
      return LaunchGroupedMatMul<Format::kE2M1>(runs.tile, epilogue, args, runs.count, stream_);
  }
}

// A map of all rows.
cudaError_t SyCudaBackbone::Multiply(int layer, Map map, const uint16_t* x, int64_t x_stride,
                                     float* y) {
  const SyCudaLayer& l = layers_[static_cast<size_t>(layer)];
  const SyCudaWeights& w = map == kIn ? l.in : map == kQB ? l.q_b : map == kOut ? l.out : l.down;
  return Multiply(w, MatrixOf(layer, map), row_runs_, x, x_stride, y, w.shape.rows);
}

int SyCudaBackbone::Attention(int layer, SyCudaError* error) {
  const SyCudaLayer& l = layers_[static_cast<size_t>(layer)];
  SY_CUDA_TRY(LaunchRmsNorm({.x = {s_.residual, spec_.hidden},
                             .rows = rows_,
                             .width = spec_.hidden,
                             .weight = l.input_norm,
                             .eps = spec_.norm_eps,
                             .out = {s_.x, spec_.hidden, true}},
                            stream_));
  SY_CUDA_TRY(Multiply(layer, kIn, s_.x, spec_.hidden, s_.in));
  if (spec_.mla == 0) {
    SY_CUDA_TRY(QueriesOfHeads(layer));
    SY_CUDA_TRY(Attend(layer));
    SY_CUDA_TRY(Multiply(layer, kOut, s_.attended, value_width_, s_.delta));
    return SY_CUDA_OK;
  }
  SY_CUDA_TRY(QueriesOfLatents(layer));
  SY_CUDA_TRY(Attend(layer));
  SY_CUDA_TRY(Multiply(l.value_up, MatrixOf(layer, kMaps + spec_.heads), head_runs_, s_.attended,
                       spec_.latent, s_.value, spec_.value));
  SY_CUDA_TRY(LaunchRoundRows({s_.value, value_width_}, rows_, static_cast<int32_t>(value_width_),
                              s_.values, value_width_, stream_));
  SY_CUDA_TRY(Multiply(layer, kOut, s_.values, value_width_, s_.delta));
  return SY_CUDA_OK;
}

// Norms and rotates q and k, clips, and stores [k | v].
cudaError_t SyCudaBackbone::QueriesOfHeads(int layer) {
  const SyCudaLayer& l = layers_[static_cast<size_t>(layer)];
  const int32_t dim = spec_.head_dim;
  const int64_t kv_width = int64_t{spec_.kv_heads} * dim;
  float* const k = s_.in + kv_at_;
  const bool by_heads = spec_.qk_norm == SY_CUDA_QK_HEADS;
  const auto norm = [&](float* x, int32_t heads, const float* weight) {
    return LaunchRmsNorm({.x = {x, in_width_},
                          .rows = rows_,
                          .width = by_heads ? dim : heads * dim,
                          .pieces = by_heads ? heads : 1,
                          .piece_stride = dim,
                          .weight = weight,
                          .eps = spec_.norm_eps,
                          .out = {x, in_width_, false}},
                         stream_);
  };
  if (spec_.qk_norm != SY_CUDA_QK_NONE) {
    SY_CUDA_NEXT(norm(s_.in, spec_.heads, l.q_norm));
    SY_CUDA_NEXT(norm(k, spec_.kv_heads, l.k_norm));
  }
  RopeArgs rope{.from = s_.in,
                .to = s_.query,
                .from_stride = in_width_,
                .from_head_stride = dim,
                .to_stride = q_width_,
                .to_head_stride = dim,
                .rows = rows_,
                .heads = spec_.heads,
                .width = dim,
                .dim = spec_.rope_dim,
                .interleaved = spec_.rope_interleaved != 0,
                .clip = spec_.clip_qkv,
                .positions = device_.positions,
                .table = spec_.rope};
  SY_CUDA_NEXT(LaunchRope(rope, stream_));
  rope.from = rope.to = k;
  rope.to_stride = in_width_;
  rope.heads = spec_.kv_heads;
  SY_CUDA_NEXT(LaunchRope(rope, stream_));
  if (spec_.clip_qkv > 0) {  // v: clipped, and not rotated; k's rotated numbers may be beyond it
    rope.from = rope.to = k + kv_width;
    rope.dim = 0;
    SY_CUDA_NEXT(LaunchRope(rope, stream_));
  }
  return cudaSuccess;
}

// Norms and rotates what is stored; carries queries into the latent space.
cudaError_t SyCudaBackbone::QueriesOfLatents(int layer) {
  const SyCudaLayer& l = layers_[static_cast<size_t>(layer)];
  const auto norm = [&](float* x, int32_t width, const float* weight, const OutRows& out) {
    return LaunchRmsNorm({.x = {x, in_width_},
                          .rows = rows_,
                          .width = width,
                          .weight = weight,
                          .eps = spec_.lora_norm_eps,
                          .out = out},
                         stream_);
  };
  float *q = s_.in, *const kv = s_.in + kv_at_;
  int64_t q_stride = in_width_;
  if (spec_.q_lora > 0) {
    SY_CUDA_NEXT(norm(s_.in, spec_.q_lora, l.q_norm, {s_.q_a, spec_.q_lora, true}));
    SY_CUDA_NEXT(Multiply(layer, kQB, s_.q_a, spec_.q_lora, s_.q));
    q = s_.q, q_stride = q_width_;
  }
  SY_CUDA_NEXT(norm(kv, spec_.latent, l.k_norm, {kv, in_width_, false}));
  const int32_t head = spec_.nope + spec_.rope_dim;
  RopeArgs rope{.from = kv + spec_.latent,
                .to = kv + spec_.latent,
                .from_stride = in_width_,
                .to_stride = in_width_,
                .rows = rows_,
                .heads = 1,
                .width = spec_.rope_dim,
                .dim = spec_.rope_dim,
                .interleaved = spec_.rope_interleaved != 0,
                .positions = device_.positions,
                .table = spec_.rope};
  SY_CUDA_NEXT(LaunchRope(rope, stream_));
  rope.from = q + spec_.nope;
  rope.to = s_.query + spec_.latent;
  rope.from_stride = q_stride;
  rope.from_head_stride = head;
  rope.to_stride = int64_t{spec_.heads} * vectors_.key_dim;
  rope.to_head_stride = vectors_.key_dim;
  rope.heads = spec_.heads;
  SY_CUDA_NEXT(LaunchRope(rope, stream_));
  SY_CUDA_NEXT(LaunchRoundRows({q, q_stride}, rows_, static_cast<int32_t>(q_width_), s_.heads_in,
                               q_width_, stream_));
  return Multiply(l.key_up, MatrixOf(layer, kMaps), head_runs_, s_.heads_in, head, s_.query,
                  vectors_.key_dim);
}

// The most splits of a run. Results do not depend on it.
int32_t SyCudaBackbone::Slots(const AttentionArgs& args) const {
  int32_t most = 1;
  for (int32_t i = 0; i < query_runs_ && slots_ > 1; ++i) {
    const QueryRun& run = host_.queries[i];
    most = std::max(most, SplitsOfRun(args, host_.positions[run.first],
                                      host_.positions[run.first + run.count - 1]));
  }
  return std::min(most, slots_);
}

cudaError_t SyCudaBackbone::Attend(int layer) {
  const SyCudaLayer& l = layers_[static_cast<size_t>(layer)];
  int32_t shift = 0;
  while (1 << shift < spec_.block_tokens) ++shift;
  auto* const cache = static_cast<unsigned char*>(l.cache);
  const auto stride = static_cast<int64_t>(spec_.block_stride_bytes);
  const int32_t kv_heads = spec_.mla != 0 ? 1 : spec_.kv_heads;
  SY_CUDA_NEXT(LaunchStoreKv({.from = s_.in + kv_at_,
                              .stride = in_width_,
                              .rows = rows_,
                              .width = static_cast<int32_t>(in_width_ - kv_at_),
                              .positions = device_.positions,
                              .table_of_row = device_.table_of_row + int64_t{l.kv_group} * rows_,
                              .tables = device_.tables,
                              .cache = cache,
                              .block_stride_bytes = stride,
                              .block_shift = shift},
                             stream_));
  AttentionArgs args{.q = s_.query,
                     .out = s_.attended,
                     .out_bf16 = true,
                     .runs = device_.queries + int64_t{l.kv_group} * query_runs_,
                     .positions = device_.positions,
                     .tables = device_.tables,
                     .cache = cache,
                     .block_stride_bytes = stride,
                     .block_shift = shift,
                     .rows = rows_,
                     .heads = spec_.heads,
                     .kv_heads = kv_heads,
                     .scale = spec_.softmax_scale,
                     .window = l.window,
                     .sinks = l.sinks,
                     .partial = s_.partial,
                     .stats = s_.stats};
  args.slots = Slots(args);
  return switchyard::cuda::Attention(vectors_, attention_rows_,
                                     context_.properties.sharedMemPerBlockOptin, args, query_runs_,
                                     stream_);
}

cudaError_t SyCudaBackbone::FeedForward(int layer, float* out) {
  const SyCudaLayer& l = layers_[static_cast<size_t>(layer)];
  const int64_t inner = l.down.shape.columns;
  SY_CUDA_NEXT(Multiply(l.gate_up, MatrixOf(layer, kGateUp), row_runs_, s_.x, spec_.hidden,
                        s_.inner, inner, true));
  return Multiply(layer, kDown, s_.inner, inner, out);
}

int SyCudaBackbone::Dense(int layer, SyCudaError* error) {
  const SyCudaLayer& l = layers_[static_cast<size_t>(layer)];
  const int64_t n = int64_t{rows_} * spec_.hidden;
  SY_CUDA_TRY(LaunchRmsNorm({.x = {s_.residual, spec_.hidden},
                             .rows = rows_,
                             .width = spec_.hidden,
                             .add = s_.delta,
                             .add_stride = spec_.hidden,
                             .weight = l.post_norm,
                             .eps = spec_.norm_eps,
                             .out = {s_.x, spec_.hidden, true}},
                            stream_));
  SY_CUDA_TRY(FeedForward(layer, s_.delta));
  SY_CUDA_TRY(Launch(&AddTo, BlocksFor(n, 4), dim3(kRowThreads), 0, stream_, s_.residual, s_.delta,
                     nullptr, n));
  return SY_CUDA_OK;
}

cudaError_t SyCudaBackbone::Choose(int layer) {
  const SyCudaLayer& l = layers_[static_cast<size_t>(layer)];
  const SyCudaGateSpec& gate = spec_.gate;
  const int64_t n = int64_t{rows_} * spec_.hidden, scores = int64_t{rows_} * gate.experts;
  SY_CUDA_NEXT(LaunchRmsNorm({.x = {s_.residual, spec_.hidden},
                              .rows = rows_,
                              .width = spec_.hidden,
                              .add = s_.delta,
                              .add_stride = spec_.hidden,
                              .weight = l.post_norm,
                              .eps = spec_.norm_eps,
                              .out = {s_.normed, spec_.hidden, false}},
                             stream_));
  SY_CUDA_NEXT(
      Launch(&SplitPlanes, BlocksFor(n, 4), dim3(kRowThreads), 0, stream_, s_.normed, n, s_.x));
  SY_CUDA_NEXT(Multiply(l.gate, MatrixOf(layer, kGate), plane_runs_, s_.x, spec_.hidden,
                        s_.plane_logits, gate.experts));
  SY_CUDA_NEXT(Launch(&SumPlanes, BlocksFor(scores, 1), dim3(kRowThreads), 0, stream_,
                      s_.plane_logits, rows_, gate.experts, l.gate.bias, s_.gate_logits));
  return LaunchGate({.logits = s_.gate_logits,
                     .rows = rows_,
                     .experts = gate.experts,
                     .correction_bias = l.correction_bias,
                     .score = static_cast<GateScore>(gate.score),
                     .group_score = static_cast<GroupScore>(gate.group_score),
                     .groups = gate.groups,
                     .topk_groups = gate.topk_groups,
                     .top_k = gate.top_k,
                     .normalise = gate.normalise != 0,
                     .normalise_eps = gate.normalise_eps,
                     .scale = gate.scale,
                     .ids = s_.ids,
                     .weights = s_.weights},
                    stream_);
}

int SyCudaBackbone::Route(int layer, SyCudaRouted* routed, SyCudaError* error) {
  const size_t rows = static_cast<size_t>(rows_), top_k = static_cast<size_t>(spec_.gate.top_k);
  const size_t n = rows * static_cast<size_t>(spec_.hidden);
  // Sums first and rows last: each part is aligned by what stands before.
  const size_t x_at = n * sizeof(float), ids_at = x_at + n * sizeof(uint16_t);
  const size_t weights_at = ids_at + rows * top_k * sizeof(int32_t);
  const int status = routed_out_.Reserve(weights_at + rows * top_k * sizeof(float), error);
  if (status != SY_CUDA_OK) return status;
  unsigned char* const out = routed_out_.data();
  SY_CUDA_TRY(Choose(layer));
  const auto copy = [&](size_t at, const void* from, size_t bytes) {
    return cudaMemcpyAsync(out + at, from, bytes, cudaMemcpyDeviceToHost, stream_);
  };
  SY_CUDA_TRY(copy(x_at, s_.x, n * sizeof(uint16_t)));
  SY_CUDA_TRY(copy(ids_at, s_.ids, rows * top_k * sizeof(int32_t)));
  SY_CUDA_TRY(copy(weights_at, s_.weights, rows * top_k * sizeof(float)));
  SY_CUDA_TRY(cudaEventRecord(on_host_, stream_));
  *routed = {.x = reinterpret_cast<const uint16_t*>(out + x_at),
             .ids = reinterpret_cast<const int32_t*>(out + ids_at),
             .weights = reinterpret_cast<const float*>(out + weights_at),
             .sums = reinterpret_cast<float*>(out)};
  return SY_CUDA_OK;
}

int SyCudaBackbone::WaitRouted(SyCudaError* error) {
  SY_CUDA_TRY(cudaEventSynchronize(on_host_));
  return SY_CUDA_OK;
}

int SyCudaBackbone::Ready(int32_t* done, SyCudaError* error) {
  const cudaError_t status = cudaEventQuery(on_host_);
  *done = status != cudaErrorNotReady;
  if (status == cudaErrorNotReady) {
    cudaGetLastError();  // it is no error
    return SY_CUDA_OK;
  }
  SY_CUDA_TRY(status);
  return SY_CUDA_OK;
}

int SyCudaBackbone::Shared(int layer, SyCudaError* error) {
  if (layers_[static_cast<size_t>(layer)].down.tiles == nullptr) return SY_CUDA_OK;
  SY_CUDA_TRY(FeedForward(layer, s_.delta));
  return SY_CUDA_OK;
}

cudaError_t SyCudaBackbone::AddSums(int layer) {
  const int64_t n = int64_t{rows_} * spec_.hidden;
  const float* const shared =
      layers_[static_cast<size_t>(layer)].down.tiles == nullptr ? nullptr : s_.delta;
  return Launch(&AddTo, BlocksFor(n, 4), dim3(kRowThreads), 0, stream_, s_.residual, s_.sums,
                shared, n);
}

int SyCudaBackbone::Combine(int layer, SyCudaError* error) {
  const size_t n = static_cast<size_t>(rows_) * static_cast<size_t>(spec_.hidden);
  SY_CUDA_TRY(cudaMemcpyAsync(s_.sums, routed_out_.data(), n * sizeof(float),
                              cudaMemcpyHostToDevice, stream_));
  SY_CUDA_TRY(AddSums(layer));
  return SY_CUDA_OK;
}

int SyCudaBackbone::Moe(int layer, SyCudaRouted* chosen, SyCudaError* error) {
  const SyCudaGateSpec& gate = spec_.gate;
  if (!has_experts() || layers_[static_cast<size_t>(layer)].experts == nullptr) {
    return Fail(error, SY_CUDA_INVALID, "layer %d: its experts are not on the device", layer);
  }
  SY_CUDA_TRY(Choose(layer));
  const RoutedPairs pairs{.ids = s_.ids,
                          .weights = s_.weights,
                          .rows = rows_,
                          .top_k = gate.top_k,
                          .experts = gate.experts,
                          .run_rows = RunRows(rows_),
                          .most_runs = static_cast<int32_t>(ExpertRuns(rows_)),
                          .gather = s_.gather,
                          .place = s_.place,
                          .runs = s_.runs,
                          .run_count = s_.run_count};
  SY_CUDA_TRY(LaunchGroupPairs(pairs, stream_));
  const size_t count = static_cast<size_t>(rows_) * static_cast<size_t>(gate.top_k);
  auto* const ids =
      reinterpret_cast<int32_t*>(chosen_out_.data()) + 2 * static_cast<size_t>(layer) * count;
  SY_CUDA_TRY(cudaMemcpyAsync(ids, s_.ids, count * 4, cudaMemcpyDeviceToHost, stream_));
  SY_CUDA_TRY(cudaMemcpyAsync(ids + count, s_.weights, count * 4, cudaMemcpyDeviceToHost, stream_));
  *chosen = {.ids = ids, .weights = reinterpret_cast<const float*>(ids + count)};
  SY_CUDA_TRY(products_->TakeRows(s_.x, rows_, stream_));
  const auto* const matrices =
      reinterpret_cast<const Matrix*>(expert_matrices_.data()) + int64_t{2} * layer * gate.experts;
  const ExpertProducts::Batch batch{
      .rows = pairs.run_rows, .runs = s_.runs, .count = pairs.most_runs, .run_count = s_.run_count};
  SY_CUDA_TRY(products_->Multiply({.gate_up = matrices,
                                   .down = matrices + gate.experts,
                                   .x = s_.x,
                                   .gather = s_.gather,
                                   .end = int64_t{rows_} * gate.top_k},
                                  {&batch, 1}, stream_));
  SY_CUDA_TRY(LaunchSumPairsOfRows(pairs, products_->y(), spec_.hidden, spec_.experts_per_group,
                                   s_.sums, stream_));
  if (const int status = Shared(layer, error); status != SY_CUDA_OK) return status;
  SY_CUDA_TRY(AddSums(layer));
  return SY_CUDA_OK;
}

int SyCudaBackbone::Head(const float** logits, SyCudaError* error) {
  const size_t bytes =
      sizeof(float) * static_cast<size_t>(logits_) * static_cast<size_t>(spec_.vocab);
  if (logits_to_ == nullptr) {
    if (const int status = logits_out_.Reserve(bytes, error); status != SY_CUDA_OK) return status;
  }
  float* const to =
      logits_to_ != nullptr ? logits_to_ : reinterpret_cast<float*>(logits_out_.data());
  *logits = to;
  if (logits_ > 0) {
    SY_CUDA_TRY(LaunchRmsNorm({.x = {s_.residual, spec_.hidden},
                               .rows = logits_,
                               .width = spec_.hidden,
                               .gather = device_.logit_rows,
                               .weight = spec_.final_norm,
                               .eps = spec_.norm_eps,
                               .out = {s_.x, spec_.hidden, true}},
                              stream_));
    SY_CUDA_TRY(Multiply(spec_.lm_head, MatrixOf(spec_.layers, 0), logit_runs_, s_.x, spec_.hidden,
                         s_.logits, spec_.vocab));
    SY_CUDA_TRY(cudaMemcpyAsync(to, s_.logits, bytes, cudaMemcpyDeviceToHost, stream_));
  }
  SY_CUDA_TRY(cudaEventRecord(on_host_, stream_));
  return SY_CUDA_OK;
}
