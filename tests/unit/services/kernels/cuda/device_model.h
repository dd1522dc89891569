// A checkpoint's backbone as the CUDA plugin takes it (backbone_abi.h), on a device.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "router/graph/weights.h"
#include "router/kv/kv_storage.h"
#include "services/kernels/cuda/backbone_abi.h"
#include "services/kernels/kernels.h"
#include "services/kernels/pack_tiles.h"
#include "services/model/kv_layout.h"
#include "services/model/rope_table.h"

namespace switchyard::test {

class DeviceModel {
 public:
  static constexpr int kPositions = 512, kBlocks = 64;

  DeviceModel(const ModelSpec& spec, const router::RouterWeights& weights)
      : spec_(spec), kv_(KvLayoutOf(spec)) {
    EXPECT_EQ(api_.open(0, &context_, &error_), SY_CUDA_OK) << error_.text;
    const router::KvStorage like = *router::KvStorage::Create(spec, DType::kBF16, 1);
    block_bytes_ = static_cast<size_t>(like.block_stride_bytes());
    // As KvStorage lays it out: a slot's blocks one after the other.
    slot_bytes_ = block_bytes_ * kBlocks;
    // NaNs: what is read before it is written shows.
    const size_t bytes = slot_bytes_ * static_cast<size_t>(kv_.layers_per_block);
    cache_ = static_cast<std::byte*>(Put(std::vector<std::byte>(bytes, std::byte{0xff})));
    std::vector<SyCudaLayer> layers;
    for (int l = 0; l < spec.num_layers(); ++l) {
      layers.push_back(LayerOf(l, weights.layers[static_cast<size_t>(l)]));
    }
    const SyCudaBackboneSpec backbone = SpecOf(weights);
    EXPECT_EQ(backbone_api_.create(context_, &backbone, layers.data(), &backbone_, &error_),
              SY_CUDA_OK)
        << error_.text;
  }
  ~DeviceModel() {
    if (backbone_ != nullptr) backbone_api_.destroy(backbone_);
    for (void* block : blocks_) api_.release(context_, SY_CUDA_DEVICE, block);
    api_.close(context_);
  }
  DeviceModel(const DeviceModel&) = delete;
  DeviceModel& operator=(const DeviceModel&) = delete;

  const ModelSpec& spec() const { return spec_; }
  const KvLayout& kv() const { return kv_; }
  SyCudaContext* context() const { return context_; }
  SyCudaBackbone* backbone() const { return backbone_; }
  const SyCudaApi& api() const { return api_; }
  const SyCudaBackboneApi& backbone_api() const { return backbone_api_; }
  SyCudaError& error() { return error_; }
  void* Put(std::span<const std::byte> bytes) {
    void* device = nullptr;
    EXPECT_EQ(api_.allocate(context_, SY_CUDA_DEVICE, std::max<size_t>(bytes.size(), 1), &device,
                            &error_),
              SY_CUDA_OK)
        << error_.text;
    EXPECT_EQ(api_.upload(context_, device, bytes.data(), bytes.size(), &error_), SY_CUDA_OK);
    blocks_.push_back(device);
    return device;
  }

  // Spec and layers once more, to make others of them.
  SyCudaBackboneSpec SpecOf(const router::RouterWeights& weights) {
    const AttentionSpec& a = spec_.attention;
    RopeTable table(a.rope, kPositions);
    table.Reserve(kPositions);
    std::vector<float> rope;
    for (int p = 0; p < kPositions; ++p) {
      rope.insert(rope.end(), table.Cos(p), table.Cos(p) + table.half());
      rope.insert(rope.end(), table.Sin(p), table.Sin(p) + table.half());
    }
    const GateSpec& g = spec_.gate;
    return {.hidden = spec_.hidden,
            .vocab = spec_.vocab,
            .layers = spec_.num_layers(),
            .norm_eps = spec_.norm_eps,
            .mla = a.kind == AttentionKind::kMla,
            .heads = a.heads,
            .kv_heads = a.kv_heads,
            .head_dim = a.head_dim,
            .qk_norm = static_cast<int32_t>(a.qk_norm),
            .clip_qkv = a.clip_qkv,
            .q_lora = a.q_lora_rank,
            .latent = a.kv_lora_rank,
            .nope = a.qk_nope_head_dim,
            .value = a.v_head_dim,
            .lora_norm_eps = a.lora_norm_eps,
            .rope_dim = a.rope.dim,
            .rope_interleaved = a.rope.layout == RopeLayout::kInterleaved,
            .rope = static_cast<float*>(Put(std::as_bytes(std::span(rope)))),
            .positions = kPositions,
            .softmax_scale = a.softmax_scale,
            .gate = {.experts = spec_.experts.count,
                     .top_k = g.top_k,
                     .score = static_cast<int32_t>(g.score),
                     .group_score = static_cast<int32_t>(g.group_score),
                     .groups = g.groups,
                     .topk_groups = g.topk_groups,
                     .normalise = g.normalise,
                     .normalise_eps = g.normalise_eps,
                     .scale = g.scale},
            .kv_groups = kv_.groups(),
            .block_tokens = router::kBlockTokens,
            .block_stride_bytes = block_bytes_,
            .embedding = static_cast<uint16_t*>(
                Put({weights.embedding.data,
                     static_cast<size_t>(spec_.vocab) * static_cast<size_t>(spec_.hidden) * 2})),
            .final_norm = Vector(weights.final_norm),
            .lm_head = Pack({weights.lm_head})};
  }
  SyCudaLayer LayerOf(int l, const router::LayerWeights& w) {
    const KvLayout::Place place = kv_.layers[static_cast<size_t>(l)];
    SyCudaLayer layer{.window = spec_.layers[static_cast<size_t>(l)].window,
                      .kv_group = place.group,
                      .cache = cache_ + static_cast<size_t>(place.slot) * slot_bytes_,
                      .input_norm = Vector(w.input_norm),
                      .post_norm = Vector(w.post_attention_norm),
                      .moe = spec_.layers[static_cast<size_t>(l)].moe};
    if (spec_.attention.kind == AttentionKind::kMla) {
      const router::MlaWeights& m = w.mla;
      layer.in = Pack({m.q_a ? m.q_a : m.q, m.kv_a});
      layer.q_norm = Vector(m.q_a_norm);
      layer.k_norm = Vector(m.kv_a_norm);
      if (m.q_b) layer.q_b = Pack({m.q_b});
      layer.key_up = PackHeads(m.key_up);
      layer.value_up = PackHeads(m.value_up);
      layer.out = Pack({m.o});
    } else {
      const router::GqaWeights& g = w.gqa;
      layer.in = Pack({g.q, g.k, g.v}, {g.q_bias, g.k_bias, g.v_bias});
      layer.q_norm = Vector(g.q_norm);
      layer.k_norm = Vector(g.k_norm);
      layer.out = Pack({g.o}, {g.o_bias});
      layer.sinks = Vector(g.sinks);
    }
    if (w.gate.weight) layer.gate = Pack({w.gate.weight}, {w.gate.bias});
    if (!w.gate.correction_bias.empty()) {
      layer.correction_bias =
          static_cast<float*>(Put(std::as_bytes(std::span(w.gate.correction_bias))));
    }
    if (w.mlp) {
      layer.gate_up = PackGateUp(w.mlp);
      layer.down = Pack({w.mlp.down});
    }
    return layer;
  }

 private:
  static SyCudaMatrix MatrixOf(const cuda::TileShape& s) {
    return {static_cast<int32_t>(s.format), s.rows, s.columns, s.group, s.group_rows, s.zeros};
  }
  static cuda::TileShape ShapeOf(const WeightView& w) {
    const absl::StatusOr<cuda::TileShape> shape = kernels::TileShapeOf(w);
    EXPECT_TRUE(shape.ok()) << shape.status();
    return *shape;
  }
  const float* Vector(const VectorView& v) {
    if (!v) return nullptr;
    std::vector<float> floats(static_cast<size_t>(v.size));
    kernels::ConvertToFloat(v.data, v.dtype, v.size, floats.data());
    return static_cast<float*>(Put(std::as_bytes(std::span(floats))));
  }
  // Matrices of the same inputs as one.
  SyCudaWeights Pack(const std::vector<WeightView>& parts,
                     const std::vector<VectorView>& biases = {}) {
    cuda::TileShape shape = ShapeOf(parts[0]);
    shape.rows = 0;
    for (const WeightView& w : parts) shape.rows += static_cast<int32_t>(w.out);
    std::vector<std::byte> tiles(shape.bytes());
    std::vector<float> bias(static_cast<size_t>(shape.row_tiles()) * cuda::kTileRows);
    int32_t first = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      kernels::PackTiles(
          parts[i], shape, [first](int32_t r) { return first + r; }, tiles.data());
      if (i < biases.size() && biases[i]) {
        kernels::ConvertToFloat(biases[i].data, biases[i].dtype, biases[i].size,
                                bias.data() + first);
      }
      first += static_cast<int32_t>(parts[i].out);
    }
    const bool any = !biases.empty() && biases[0];
    return {.shape = MatrixOf(shape),
            .tiles = Put(tiles),
            .bias = any ? static_cast<float*>(Put(std::as_bytes(std::span(bias)))) : nullptr};
  }
  SyCudaWeights PackHeads(const std::vector<WeightView>& heads) {
    const cuda::TileShape shape = ShapeOf(heads[0]);
    std::vector<std::byte> tiles(shape.bytes() * heads.size());
    for (size_t h = 0; h < heads.size(); ++h) {
      kernels::PackTiles(
          heads[h], shape, [](int32_t r) { return r; }, tiles.data() + h * shape.bytes());
    }
    return {.shape = MatrixOf(shape), .tiles = Put(tiles)};
  }
  SyCudaWeights PackGateUp(const router::MlpWeights& w) {
    cuda::TileShape shape = ShapeOf(w.gate);
    shape.rows *= 2;
    std::vector<std::byte> tiles(shape.bytes());
    for (const bool up : {false, true}) {
      kernels::PackTiles(
          up ? w.up : w.gate, shape, [up](int32_t r) { return cuda::GateUpRow(r, up); },
          tiles.data());
    }
    return {.shape = MatrixOf(shape), .tiles = Put(tiles)};
  }

  const ModelSpec& spec_;
  const KvLayout kv_;
  const SyCudaApi& api_ = *SyCudaPlugin(SY_CUDA_ABI_VERSION);
  const SyCudaBackboneApi& backbone_api_ = *SyCudaBackbonePlugin(SY_CUDA_BACKBONE_ABI_VERSION);
  SyCudaContext* context_ = nullptr;
  SyCudaBackbone* backbone_ = nullptr;
  SyCudaError error_ = {};
  std::vector<void*> blocks_;
  std::byte* cache_ = nullptr;
  size_t block_bytes_ = 0, slot_bytes_ = 0;
};

}  // namespace switchyard::test
