#include "services/kernels/cuda/backbone.h"

#include <algorithm>
#include <new>

#include "services/kernels/cuda/expert_block.h"
#include "services/kernels/cuda/gate.cuh"
#include "services/kernels/cuda/norm.cuh"
#include "services/kernels/cuda/routed_pairs.cuh"

using namespace switchyard::cuda;

namespace {

constexpr int kMostRuns = 65535;  // blocks of a grid's second dimension
constexpr int64_t kMostPartialBytes = int64_t{512} << 20;

// Parts of a buffer, one after the other; of none (null) only their bytes.
class Parts {
 public:
  explicit Parts(unsigned char* base) : base_(base) {}
  template <typename T>
  void Take(T*& part, int64_t count) {
    part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
  }
  size_t bytes() const { return bytes_; }

 private:
  unsigned char* const base_;
  size_t bytes_ = 0;
};

constexpr int32_t Pieces(int32_t rows, int32_t tile) { return (rows + tile - 1) / tile; }

AttentionVectors VectorsOf(const SyCudaBackboneSpec& s) {
  if (s.mla != 0) return {s.latent + s.rope_dim, s.latent, true};
  return {s.head_dim, s.head_dim, false};
}
int64_t QWidth(const SyCudaBackboneSpec& s) {
  return int64_t{s.heads} * (s.mla != 0 ? s.nope + s.rope_dim : s.head_dim);
}
int64_t KeysAt(const SyCudaBackboneSpec& s) {
  return s.mla != 0 && s.q_lora > 0 ? s.q_lora : QWidth(s);
}
int64_t InWidth(const SyCudaBackboneSpec& s) {
  return KeysAt(s) + (s.mla != 0 ? s.latent + s.rope_dim : int64_t{2} * s.kv_heads * s.head_dim);
}

bool Fits(const SyCudaWeights& w, int64_t rows, int64_t columns) {
  const SyCudaMatrix& m = w.shape;
  return w.tiles != nullptr && m.format >= SY_CUDA_BF16 && m.format <= SY_CUDA_E2M1 &&
         m.rows == rows && m.columns == columns && m.columns % 8 == 0 &&
         (m.format == SY_CUDA_BF16) == (m.group == 0) && m.group % kSlab == 0 &&
         (m.group_rows == 1 || (m.group_rows > 0 && m.group_rows % 8 == 0));
}

}  // namespace

SyCudaBackbone::SyCudaBackbone(SyCudaContext& context, const SyCudaBackboneSpec& spec,
                               const SyCudaLayer* layers)
    : context_(context),
      spec_(spec),
      layers_(layers, layers + spec.layers),
      vectors_(VectorsOf(spec)),
      q_width_(QWidth(spec)),
      in_width_(InWidth(spec)),
      kv_at_(KeysAt(spec)),
      value_width_(int64_t{spec.heads} * (spec.mla != 0 ? spec.value : spec.head_dim)) {
  for (const SyCudaLayer& layer : layers_) {
    if (layer.down.tiles == nullptr) continue;
    inner_width_ = std::max<int64_t>(inner_width_, layer.down.shape.columns);
  }
  if (has_experts()) {
    products_ = std::make_unique<switchyard::cuda::ExpertProducts>(context, spec.experts);
  }
}

SyCudaBackbone::~SyCudaBackbone() {
  cudaSetDevice(context_.device);
  if (stream_ != nullptr) {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  if (on_host_ != nullptr) cudaEventDestroy(on_host_);
}

int SyCudaBackbone::CheckLayer(int l, SyCudaError* error) const {
  const SyCudaLayer& layer = layers_[static_cast<size_t>(l)];
  const bool mla = spec_.mla != 0;
  const char* what = nullptr;
  const auto need = [&](bool fits, const char* name) {
    if (!fits && what == nullptr) what = name;
  };
  need(Fits(layer.in, in_width_, spec_.hidden), "in");
  need(Fits(layer.out, spec_.hidden, value_width_), "out");
  if (mla && spec_.q_lora > 0) need(Fits(layer.q_b, q_width_, spec_.q_lora), "q_b");
  if (mla) {
    need(Fits(layer.key_up, spec_.latent, spec_.nope), "key_up");
    need(Fits(layer.value_up, spec_.value, spec_.latent), "value_up");
  }
  if (layer.moe != 0) {
    need(Fits(layer.gate, spec_.gate.experts, spec_.hidden) &&
             layer.gate.shape.format == SY_CUDA_BF16,
         "gate");
  }
  if (layer.moe == 0 || layer.down.tiles != nullptr) {
    const int64_t inner = layer.down.shape.columns;
    need(Fits(layer.down, spec_.hidden, inner), "down");
    need(Fits(layer.gate_up, 2 * inner, spec_.hidden), "gate_up");
  }
  need(layer.cache != nullptr && layer.input_norm != nullptr && layer.post_norm != nullptr &&
           layer.kv_group >= 0 && layer.kv_group < spec_.kv_groups,
       "cache, norms or kv_group");
  return what == nullptr
             ? SY_CUDA_OK
             : Fail(error, SY_CUDA_INVALID, "layer %d: %s is missing or of another shape", l, what);
}

int SyCudaBackbone::Check(SyCudaError* error) const {
  const SyCudaBackboneSpec& s = spec_;
  const int32_t block = s.block_tokens;
  if (s.hidden % 8 != 0 || s.rope_dim % 2 != 0 || block <= 0 || (block & (block - 1)) != 0) {
    return Fail(error, SY_CUDA_INVALID, "hidden %d, rope %d, blocks of %d tokens", s.hidden,
                s.rope_dim, block);
  }
  const int64_t widths[] = {q_width_,     in_width_,        kv_at_,
                            value_width_, vectors_.key_dim, vectors_.value_dim};
  if (std::any_of(std::begin(widths), std::end(widths), [](int64_t w) { return w % 8 != 0; })) {
    return Fail(error, SY_CUDA_INVALID, "vectors of attention whose widths are no multiples of 8");
  }
  if (s.gate.experts > kMaxExperts || s.gate.top_k > kMaxTopK || s.gate.top_k > s.gate.experts) {
    return Fail(error, SY_CUDA_INVALID, "%d of %d experts; at most %d of %d are supported",
                s.gate.top_k, s.gate.experts, kMaxTopK, kMaxExperts);
  }
  if (!Fits(s.lm_head, s.vocab, s.hidden) || s.embedding == nullptr || s.final_norm == nullptr ||
      s.rope == nullptr) {
    return Fail(error, SY_CUDA_INVALID, "lm_head, embedding, final_norm or rope is missing");
  }
  for (int l = 0; l < s.layers; ++l) {
    if (const int status = CheckLayer(l, error); status != SY_CUDA_OK) return status;
  }
  return SY_CUDA_OK;
}

int SyCudaBackbone::Prepare(SyCudaError* error) {
  if (const int status = Check(error); status != SY_CUDA_OK) return status;
  SY_CUDA_TRY(cudaSetDevice(context_.device));
  const AttentionArgs none{.heads = spec_.heads, .kv_heads = spec_.mla != 0 ? 1 : spec_.kv_heads};
  const size_t shared = context_.properties.sharedMemPerBlockOptin;
  for (const int32_t queries : {1, kMostRows}) {
    const int32_t rows = AttentionRows(vectors_, none.heads, none.kv_heads, queries, shared);
    if (switchyard::cuda::Attention(vectors_, rows, shared, none, 0, nullptr) != cudaSuccess) {
      cudaGetLastError();
      return Fail(error, SY_CUDA_INVALID, "attention with keys of %d and values of %d",
                  vectors_.key_dim, vectors_.value_dim);
    }
  }
  SY_CUDA_TRY(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  SY_CUDA_TRY(cudaEventCreateWithFlags(&on_host_, cudaEventDisableTiming | cudaEventBlockingSync));
  SY_CUDA_TRY(PrepareGroupedMatMul<Format::kBf16>());
  SY_CUDA_TRY(PrepareGroupedMatMul<Format::kE4M3>());
  SY_CUDA_TRY(PrepareGroupedMatMul<Format::kI8>());
  SY_CUDA_TRY(PrepareGroupedMatMul<Format::kI4>());
  SY_CUDA_TRY(PrepareGroupedMatMul<Format::kE2M1>());
  if (const int status = PrepareExperts(error); status != SY_CUDA_OK) return status;
  return UploadMatrices(error);
}

int SyCudaBackbone::PrepareExperts(SyCudaError* error) {
  if (!has_experts()) return SY_CUDA_OK;
  if (spec_.experts.hidden != spec_.hidden || spec_.experts_per_group <= 0) {
    return Fail(error, SY_CUDA_INVALID, "experts of %d numbers a row in groups of %d",
                spec_.experts.hidden, spec_.experts_per_group);
  }
  if (const int status = products_->Prepare(error); status != SY_CUDA_OK) return status;
  const auto experts = static_cast<size_t>(spec_.gate.experts);
  std::vector<Matrix> all(layers_.size() * 2 * experts);
  for (size_t l = 0; l < layers_.size(); ++l) {
    for (size_t e = 0; e < experts && layers_[l].experts != nullptr; ++e) {
      all[2 * l * experts + e] = products_->GateUp(layers_[l].experts[e]);
      all[(2 * l + 1) * experts + e] = products_->Down(layers_[l].experts[e]);
    }
  }
  const size_t bytes = all.size() * sizeof(Matrix);
  if (const int status = expert_matrices_.Reserve(bytes, error); status != SY_CUDA_OK)
    return status;
  SY_CUDA_TRY(
      cudaMemcpyAsync(expert_matrices_.data(), all.data(), bytes, cudaMemcpyHostToDevice, stream_));
  SY_CUDA_TRY(cudaStreamSynchronize(stream_));
  return SY_CUDA_OK;
}

// As many as an expert has in the mean; those with more have several runs.
int32_t SyCudaBackbone::RunRows(int64_t rows) const {
  const int64_t pairs = rows * spec_.gate.top_k, experts = std::max(spec_.gate.experts, 1);
  return products_->RowsARun(
      static_cast<int>(std::min<int64_t>((pairs + experts - 1) / experts, 1 << 20)));
}

int64_t SyCudaBackbone::ExpertRuns(int64_t rows) const {
  return MostRuns(rows * spec_.gate.top_k, spec_.gate.experts, RunRows(rows));
}

// [layers][kMaps, then key_up and value_up of each head], then lm_head.
const Matrix* SyCudaBackbone::MatrixOf(int layer, int map) const {
  const int64_t of_layer = kMaps + int64_t{2} * spec_.heads;
  return reinterpret_cast<const Matrix*>(matrices_.data()) + layer * of_layer + map;
}

int SyCudaBackbone::UploadMatrices(SyCudaError* error) {
  std::vector<Matrix> all;
  const auto add = [&](const SyCudaWeights& w, bool bias = true) {
    all.push_back({static_cast<const unsigned char*>(w.tiles), bias ? w.bias : nullptr});
  };
  for (const SyCudaLayer& layer : layers_) {
    add(layer.in), add(layer.q_b), add(layer.out);
    add(layer.gate, false);  // SumPlanes adds it, once
    add(layer.gate_up), add(layer.down);
    for (const SyCudaWeights* w : {&layer.key_up, &layer.value_up}) {
      for (int h = 0; h < spec_.heads; ++h) {
        const auto* const tiles = static_cast<const unsigned char*>(w->tiles);
        const size_t at = tiles == nullptr ? 0 : ShapeOf(w->shape).bytes() * static_cast<size_t>(h);
        all.push_back({tiles + at, nullptr});
      }
    }
  }
  add(spec_.lm_head);
  const size_t bytes = all.size() * sizeof(Matrix);
  if (const int status = matrices_.Reserve(bytes, error); status != SY_CUDA_OK) return status;
  SY_CUDA_TRY(
      cudaMemcpyAsync(matrices_.data(), all.data(), bytes, cudaMemcpyHostToDevice, stream_));
  SY_CUDA_TRY(cudaStreamSynchronize(stream_));
  return SY_CUDA_OK;
}

// ---- a step ----

int SyCudaBackbone::CheckStep(const SyCudaStep& step, SyCudaError* error) const {
  if (step.rows <= 0 || step.sequences <= 0 || step.logits < 0) {
    return Fail(error, SY_CUDA_INVALID, "a step of %d rows of %d sequences, %d logits", step.rows,
                step.sequences, step.logits);
  }
  int32_t row = 0;
  for (int32_t s = 0; s < step.sequences; ++s) {
    const int32_t count = step.sequence_rows[s];
    if (count <= 0 || count > step.rows - row) {
      return Fail(error, SY_CUDA_INVALID, "sequence %d has %d rows, the step %d", s, count,
                  step.rows);
    }
    for (int32_t i = 0; i < count; ++i, ++row) {
      const int32_t position = step.positions[row];
      const bool follows = i == 0 || position == step.positions[row - 1] + 1;
      if (!follows || position < 0 || position >= spec_.positions || step.tokens[row] < 0 ||
          step.tokens[row] >= spec_.vocab) {
        return Fail(error, SY_CUDA_INVALID, "row %d: token %d at position %d", row,
                    step.tokens[row], position);
      }
    }
  }
  if (row != step.rows) {
    return Fail(error, SY_CUDA_INVALID, "sequences have %d rows, the step %d", row, step.rows);
  }
  for (int32_t i = 0; i < step.logits; ++i) {
    if (step.logit_rows[i] >= 0 && step.logit_rows[i] < step.rows) continue;
    return Fail(error, SY_CUDA_INVALID, "logits of row %d of %d", step.logit_rows[i], step.rows);
  }
  return SY_CUDA_OK;
}

int SyCudaBackbone::Begin(const SyCudaStep& step, SyCudaError* error) {
  if (const int status = CheckStep(step, error); status != SY_CUDA_OK) return status;
  SY_CUDA_TRY(cudaSetDevice(context_.device));
  SY_CUDA_TRY(cudaStreamSynchronize(stream_));  // the step before may still read its buffers
  rows_ = step.rows, sequences_ = step.sequences, logits_ = step.logits;
  const auto rows_of = [&](int32_t s) { return step.sequence_rows[s]; };
  most_rows_ = last_position_ = 0;
  table_entries_ = 0;
  for (int32_t s = 0, row = 0; s < sequences_; ++s) {
    row += rows_of(s);
    const int32_t last = step.positions[row - 1];
    most_rows_ = std::max(most_rows_, rows_of(s));
    last_position_ = std::max(last_position_, last);
    table_entries_ += last / spec_.block_tokens + 1;
  }
  const int32_t kv_heads = spec_.mla != 0 ? 1 : spec_.kv_heads;
  attention_rows_ = AttentionRows(vectors_, spec_.heads, kv_heads, most_rows_,
                                  context_.properties.sharedMemPerBlockOptin);
  const int32_t queries = QueriesATile(spec_.heads, kv_heads, attention_rows_);
  query_runs_ = 0;
  for (int32_t s = 0; s < sequences_; ++s) query_runs_ += Pieces(rows_of(s), queries);
  const int32_t tile = RowsABlock(rows_);
  row_runs_ = {.count = Pieces(rows_, tile), .tile = tile};
  plane_runs_ = {.count = Pieces(kPlanes * rows_, kMostRows), .tile = kMostRows};
  head_runs_ = {.count = spec_.heads * Pieces(rows_, tile), .tile = tile, .step = spec_.heads};
  logit_runs_ = {.count = Pieces(logits_, RowsABlock(logits_)), .tile = RowsABlock(logits_)};
  if (std::max(head_runs_.count, query_runs_) > kMostRuns || kPlanes * int64_t{rows_} > 1 << 22 ||
      (has_experts() && ExpertRuns(rows_) > kMostRuns)) {
    return Fail(error, SY_CUDA_INVALID, "a step of %d rows is too large; cut it", rows_);
  }
  // Splits side by side only where blocks are too few to fill the device.
  const int32_t blocks = query_runs_ * HeadTiles(spec_.heads, kv_heads, attention_rows_);
  const int64_t vectors = int64_t{rows_} * spec_.heads;
  const int32_t splits = last_position_ / AttentionArgs{}.split_keys + 1;
  const bool filled = blocks >= 2 * context_.properties.multiProcessorCount;
  slots_ = filled || vectors * splits > MostPartials() ? 1 : splits;
  // A query of several splits keeps its sums there, also where one block walks them.
  const int64_t partials = splits == 1 ? 0 : vectors * slots_;

  LayInput(nullptr, host_);
  const size_t scratch_bytes = LayScratch(nullptr, rows_, logits_, partials, s_);
  logits_to_ = nullptr;
  for (const int status : {pinned_.Reserve(host_.bytes, error), in_.Reserve(host_.bytes, error),
                           scratch_.Reserve(scratch_bytes, error)}) {
    if (status != SY_CUDA_OK) return status;
  }
  if (has_experts()) {
    const int64_t pairs = int64_t{rows_} * spec_.gate.top_k;
    const size_t chosen = layers_.size() * static_cast<size_t>(pairs) * 8;
    for (const int status :
         {products_->Reserve(rows_, pairs, error), chosen_out_.Reserve(chosen, error)}) {
      if (status != SY_CUDA_OK) return status;
    }
  }
  LayInput(pinned_.data(), host_);
  LayInput(in_.data(), device_);
  LayScratch(scratch_.data(), rows_, logits_, partials, s_);
  std::copy_n(step.tokens, rows_, host_.tokens);
  std::copy_n(step.positions, rows_, host_.positions);
  std::copy_n(step.logit_rows, logits_, host_.logit_rows);
  FillSequences(step);
  FillRuns();
  SY_CUDA_TRY(
      cudaMemcpyAsync(in_.data(), pinned_.data(), host_.bytes, cudaMemcpyHostToDevice, stream_));
  SY_CUDA_TRY(LaunchEmbed(spec_.embedding, spec_.hidden, device_.tokens, rows_,
                          {s_.residual, spec_.hidden}, stream_));
  return SY_CUDA_OK;
}

void SyCudaBackbone::LayInput(unsigned char* base, Input& in) const {
  Parts parts(base);
  parts.Take(in.tokens, rows_);
  parts.Take(in.positions, rows_);
  parts.Take(in.logit_rows, logits_);
  parts.Take(in.tables, spec_.kv_groups * table_entries_);
  parts.Take(in.table_of_row, spec_.kv_groups * int64_t{rows_});
  parts.Take(in.queries, spec_.kv_groups * int64_t{query_runs_});
  parts.Take(in.rows, row_runs_.count);
  parts.Take(in.planes, plane_runs_.count);
  parts.Take(in.heads, head_runs_.count);
  parts.Take(in.logits, logit_runs_.count);
  in.bytes = parts.bytes();
}

size_t SyCudaBackbone::LayScratch(unsigned char* base, int64_t rows, int64_t logits,
                                  int64_t partials, Scratch& s) const {
  const int64_t hidden = spec_.hidden, vectors = rows * spec_.heads;
  const int64_t experts = spec_.gate.experts, top_k = spec_.gate.top_k;
  Parts parts(base);
  parts.Take(s.residual, rows * hidden);
  parts.Take(s.normed, rows * hidden);
  parts.Take(s.delta, rows * hidden);
  parts.Take(s.sums, rows * hidden);
  parts.Take(s.x, kPlanes * rows * hidden);
  parts.Take(s.in, rows * in_width_);
  parts.Take(s.q, rows * q_width_);
  parts.Take(s.q_a, rows * spec_.q_lora);
  parts.Take(s.heads_in, rows * q_width_);
  parts.Take(s.query, vectors * vectors_.key_dim);
  parts.Take(s.attended, vectors * vectors_.value_dim);
  parts.Take(s.value, rows * value_width_);
  parts.Take(s.values, rows * value_width_);
  parts.Take(s.inner, rows * inner_width_);
  parts.Take(s.plane_logits, kPlanes * rows * experts);
  parts.Take(s.gate_logits, rows * experts);
  parts.Take(s.ids, rows * top_k);
  parts.Take(s.weights, rows * top_k);
  if (has_experts()) {
    parts.Take(s.gather, rows * top_k);
    parts.Take(s.place, rows * top_k);
    parts.Take(s.run_count, 1);
    parts.Take(s.runs, ExpertRuns(rows));
  }
  parts.Take(s.logits, logits * spec_.vocab);
  parts.Take(s.partial, partials * vectors_.value_dim);
  parts.Take(s.stats, partials);
  return parts.bytes();
}

// Splits side by side take no more than these, but for steps that keep as many one after the other.
int64_t SyCudaBackbone::MostPartials() const {
  return kMostPartialBytes / (int64_t{vectors_.value_dim} * static_cast<int64_t>(sizeof(float)));
}

size_t SyCudaBackbone::StepBytes(int64_t inner, int32_t rows, int32_t logits) {
  inner_width_ = inner;
  const int32_t split = AttentionArgs{}.split_keys;
  const int64_t vectors = int64_t{rows} * spec_.heads, splits = (spec_.positions - 1) / split + 1;
  const int64_t partials =
      splits == 1 ? 0 : std::max(vectors, std::min(vectors * splits, MostPartials()));
  Scratch none;
  // Tables and runs are small beside a row's scratch.
  const size_t tables = static_cast<size_t>(rows) * 64 +
                        sizeof(int32_t) * static_cast<size_t>(spec_.kv_groups) *
                            static_cast<size_t>(spec_.positions / spec_.block_tokens + 1);
  size_t bytes = LayScratch(nullptr, rows, logits, partials, none) + tables;
  if (has_experts()) bytes += products_->BytesOf(rows, int64_t{rows} * spec_.gate.top_k);
  return bytes + bytes / 4;  // DeviceBuffer's room to grow
}

void SyCudaBackbone::FillRuns() {
  const auto fill = [](Runs& runs, RowRun* host, const RowRun* device, int32_t rows) {
    runs.host = host, runs.device = device;
    for (int32_t i = 0; i < runs.count; ++i) {
      const int32_t first = i * runs.tile;
      host[i] = {0, first, std::min(runs.tile, rows - first)};
    }
  };
  fill(row_runs_, host_.rows, device_.rows, rows_);
  fill(plane_runs_, host_.planes, device_.planes, kPlanes * rows_);
  fill(logit_runs_, host_.logits, device_.logits, logits_);
  // Pair (row, head) is row · heads + head.
  head_runs_.host = host_.heads, head_runs_.device = device_.heads;
  for (int32_t i = 0; i < head_runs_.count; ++i) {
    const RowRun& rows = host_.rows[i / spec_.heads];
    const int32_t head = i % spec_.heads;
    host_.heads[i] = {head, rows.first * spec_.heads + head, rows.count};
  }
}

void SyCudaBackbone::FillSequences(const SyCudaStep& step) {
  const int32_t kv_heads = spec_.mla != 0 ? 1 : spec_.kv_heads;
  const int32_t queries = QueriesATile(spec_.heads, kv_heads, attention_rows_);
  int64_t table = 0;
  QueryRun* run = host_.queries;
  for (int32_t g = 0; g < spec_.kv_groups; ++g) {
    int64_t* const table_of_row = host_.table_of_row + int64_t{g} * rows_;
    for (int32_t s = 0, row = 0; s < sequences_; ++s) {
      const int32_t count = step.sequence_rows[s];
      const int32_t blocks = step.positions[row + count - 1] / spec_.block_tokens + 1;
      std::copy_n(step.tables[int64_t{g} * sequences_ + s], blocks, host_.tables + table);
      std::fill_n(table_of_row + row, count, table);
      for (int32_t i = 0; i < count; i += queries) {
        *run++ = {row + i, std::min(queries, count - i), table};
      }
      row += count;
      table += blocks;
    }
  }
}

int SyCudaBackbone::Wait(SyCudaError* error) {
  SY_CUDA_TRY(cudaStreamSynchronize(stream_));
  return SY_CUDA_OK;
}

int SyCudaBackbone::CopyBlock(int32_t from, int32_t to, SyCudaError* error) {
  if (from < 0 || to < 0 || from == to) {
    return Fail(error, SY_CUDA_INVALID, "block %d over block %d", from, to);
  }
  SY_CUDA_TRY(cudaSetDevice(context_.device));
  const auto stride = static_cast<size_t>(spec_.block_stride_bytes);
  const auto block = [&](const SyCudaLayer& layer, int32_t b) {
    return static_cast<unsigned char*>(layer.cache) + stride * static_cast<size_t>(b);
  };
  for (size_t l = 0; l < layers_.size(); ++l) {
    // Layers of several groups share a slot's memory, which is copied once.
    const auto same = [&](const SyCudaLayer& other) { return other.cache == layers_[l].cache; };
    const auto end = layers_.begin() + static_cast<ptrdiff_t>(l);
    if (std::any_of(layers_.begin(), end, same)) continue;
    SY_CUDA_TRY(cudaMemcpyAsync(block(layers_[l], to), block(layers_[l], from), stride,
                                cudaMemcpyDeviceToDevice, stream_));
  }
  return Wait(error);
}

int SyCudaBackbone::CheckCall(int layer, int moe, SyCudaError* error) const {
  if (layer >= 0 && layer < spec_.layers &&
      (moe < 0 || (layers_[static_cast<size_t>(layer)].moe != 0) == (moe != 0))) {
    return SY_CUDA_OK;
  }
  return Fail(error, SY_CUDA_INVALID, "there is no layer %d of %d %s experts", layer, spec_.layers,
              moe == 0 ? "without" : "with");
}

// ---- the table ----

namespace {

int Create(SyCudaContext* context, const SyCudaBackboneSpec* spec, const SyCudaLayer* layers,
           SyCudaBackbone** backbone, SyCudaError* error) {
  *backbone = new (std::nothrow) SyCudaBackbone(*context, *spec, layers);
  if (*backbone == nullptr) return Fail(error, SY_CUDA_NO_MEMORY, "host memory");
  const int status = (*backbone)->Prepare(error);
  if (status != SY_CUDA_OK) {
    delete *backbone;
    *backbone = nullptr;
  }
  return status;
}

uint64_t StepBytes(SyCudaContext* context, const SyCudaBackboneSpec* spec, int32_t inner,
                   int32_t rows, int32_t logits) {
  SyCudaBackboneSpec sizes = *spec;
  sizes.layers = 0;
  const SyCudaLayer none = {};
  return SyCudaBackbone(*context, sizes, &none).StepBytes(inner, rows, logits);
}

using LayerCall = int (SyCudaBackbone::*)(int layer, SyCudaError* error);

template <LayerCall Call, int Moe>
int OfLayer(SyCudaBackbone* b, int32_t layer, SyCudaError* error) {
  const int status = b->CheckCall(layer, Moe, error);
  return status == SY_CUDA_OK ? (b->*Call)(layer, error) : status;
}

constexpr SyCudaBackboneApi kBackboneApi = {
    .version = SY_CUDA_BACKBONE_ABI_VERSION,
    .create = Create,
    .destroy = [](SyCudaBackbone* b) { delete b; },
    .step_bytes = StepBytes,
    .begin = [](SyCudaBackbone* b, const SyCudaStep* step,
                SyCudaError* error) { return b->Begin(*step, error); },
    .attention = OfLayer<&SyCudaBackbone::Attention, -1>,
    .dense = OfLayer<&SyCudaBackbone::Dense, 0>,
    .route =
        [](SyCudaBackbone* b, int32_t layer, SyCudaRouted* routed, SyCudaError* error) {
          const int status = b->CheckCall(layer, 1, error);
          return status == SY_CUDA_OK ? b->Route(layer, routed, error) : status;
        },
    .wait_routed = [](SyCudaBackbone* b, SyCudaError* error) { return b->WaitRouted(error); },
    .ready = [](SyCudaBackbone* b, int32_t* done,
                SyCudaError* error) { return b->Ready(done, error); },
    .shared = OfLayer<&SyCudaBackbone::Shared, 1>,
    .combine = OfLayer<&SyCudaBackbone::Combine, 1>,
    .moe =
        [](SyCudaBackbone* b, int32_t layer, SyCudaRouted* chosen, SyCudaError* error) {
          const int status = b->CheckCall(layer, 1, error);
          return status == SY_CUDA_OK ? b->Moe(layer, chosen, error) : status;
        },
    .head = [](SyCudaBackbone* b, const float** logits,
               SyCudaError* error) { return b->Head(logits, error); },
    .logits_to = [](SyCudaBackbone* b, float* logits) { b->LogitsTo(logits); },
    .wait = [](SyCudaBackbone* b, SyCudaError* error) { return b->Wait(error); },
    .residual = [](SyCudaBackbone* b) { return b->residual(); },
    .copy_block = [](SyCudaBackbone* b, int32_t from, int32_t to,
                     SyCudaError* error) { return b->CopyBlock(from, to, error); },
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const SyCudaBackboneApi* SyCudaBackbonePlugin(
    int32_t version) {
  return version == SY_CUDA_BACKBONE_ABI_VERSION ? &kBackboneApi : nullptr;
}
