#include "router/device/pack_backbone.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "router/kv/kv_storage.h"
#include "services/base/status.h"
#include "services/kernels/kernels.h"
#include "services/kernels/pack_tiles.h"
#include "services/model/kv_layout.h"
#include "services/model/rope_table.h"
#include "services/tensor/dtype.h"

namespace switchyard::router {
namespace {

SyCudaMatrix MatrixOf(const cuda::TileShape& s) {
  return {static_cast<int32_t>(s.format), s.rows, s.columns, s.group, s.group_rows, s.zeros};
}

// A view whose numbers are bf16: itself, or a copy of wider ones in `copy`.
absl::StatusOr<WeightView> AsBf16(const WeightView& w, std::vector<bf16>* copy) {
  const bool wider = !w.quantised() && (w.dtype == DType::kF32 || w.dtype == DType::kF16);
  if (!wider) return w;
  const int64_t columns = w.columns();
  std::vector<float> row(static_cast<size_t>(columns));
  copy->resize(static_cast<size_t>(w.rows() * columns));
  for (int64_t r = 0; r < w.rows(); ++r) {
    kernels::RowToFloat(w, r, row.data());
    for (int64_t c = 0; c < columns; ++c) {
      const float x = row[static_cast<size_t>(c)];
      const bf16 rounded = ToBF16(x);
      if (ToFloat(rounded) != x) {
        return InvalidArgument("weights of {} that bfloat16 does not hold are not supported",
                               Name(w.dtype));
      }
      (*copy)[static_cast<size_t>(r * columns + c)] = rounded;
    }
  }
  WeightView out = w;
  out.data = reinterpret_cast<const std::byte*>(copy->data());
  out.dtype = DType::kBF16;
  out.stride = columns;
  return out;
}

class Packer {
 public:
  Packer(const ModelSpec& spec, const BackbonePlace& place)
      : spec_(spec), place_(place), kv_(KvLayoutOf(spec)) {}

  absl::StatusOr<SyCudaBackboneSpec> Spec(const RouterWeights& weights);
  absl::StatusOr<SyCudaLayer> Layer(int l, const LayerWeights& w);

 private:
  absl::Status Attention(const MlaWeights& m, SyCudaLayer* layer);
  absl::Status Attention(const GqaWeights& g, SyCudaLayer* layer);
  absl::StatusOr<const float*> Floats(std::span<const float> floats) {
    SY_ASSIGN_OR_RETURN(void* const at, place_.put(std::as_bytes(floats)));
    return static_cast<const float*>(at);
  }
  absl::StatusOr<const float*> Vector(const VectorView& v);
  absl::StatusOr<const float*> Rope();
  absl::StatusOr<const uint16_t*> Embedding(const WeightView& w);
  // Matrices of the same inputs as one.
  absl::StatusOr<SyCudaWeights> Rows(std::string_view name, const std::vector<WeightView>& parts,
                                     const std::vector<VectorView>& biases = {});
  absl::StatusOr<SyCudaWeights> Heads(std::string_view name, const std::vector<WeightView>& heads);
  absl::StatusOr<SyCudaWeights> GateUp(const MlpWeights& w);
  absl::StatusOr<SyCudaWeights> Put(const cuda::TileShape& shape,
                                    const std::vector<std::byte>& tiles,
                                    const std::vector<float>& bias = {});

  const ModelSpec& spec_;
  const BackbonePlace& place_;
  const KvLayout kv_;
};

absl::StatusOr<const float*> Packer::Vector(const VectorView& v) {
  if (!v) return nullptr;
  std::vector<float> floats(static_cast<size_t>(v.size));
  kernels::ConvertToFloat(v.data, v.dtype, v.size, floats.data());
  return Floats(floats);
}

// As the plugin takes it: all cosines of a position, then its sines.
absl::StatusOr<const float*> Packer::Rope() {
  RopeTable table(spec_.attention.rope, place_.positions);
  table.Reserve(place_.positions);
  std::vector<float> rope;
  rope.reserve(static_cast<size_t>(2 * place_.positions * table.half()));
  for (int64_t p = 0; p < place_.positions; ++p) {
    rope.insert(rope.end(), table.Cos(p), table.Cos(p) + table.half());
    rope.insert(rope.end(), table.Sin(p), table.Sin(p) + table.half());
  }
  return Floats(rope);
}

absl::StatusOr<const uint16_t*> Packer::Embedding(const WeightView& w) {
  std::vector<bf16> copy;
  SY_ASSIGN_OR_RETURN(const WeightView rows, AsBf16(w, &copy));
  if (rows.dtype != DType::kBF16 || rows.quantised() || rows.stride != spec_.hidden) {
    return InvalidArgument("rows of {} are not supported; CUDA devices take bfloat16",
                           Name(w.dtype));
  }
  const size_t bytes = static_cast<size_t>(spec_.vocab) * static_cast<size_t>(spec_.hidden) * 2;
  SY_ASSIGN_OR_RETURN(void* const at, place_.put({rows.data, bytes}));
  return static_cast<const uint16_t*>(at);
}

absl::StatusOr<SyCudaWeights> Packer::Put(const cuda::TileShape& shape,
                                          const std::vector<std::byte>& tiles,
                                          const std::vector<float>& bias) {
  SyCudaWeights out{.shape = MatrixOf(shape)};
  SY_ASSIGN_OR_RETURN(out.tiles, place_.put(tiles));
  if (!bias.empty()) {
    SY_ASSIGN_OR_RETURN(out.bias, Floats(bias));
  }
  return out;
}

absl::StatusOr<SyCudaWeights> Packer::Rows(std::string_view name,
                                           const std::vector<WeightView>& parts,
                                           const std::vector<VectorView>& biases) {
  const auto pack = [&]() -> absl::StatusOr<SyCudaWeights> {
    std::vector<std::vector<bf16>> copies(parts.size());
    std::vector<WeightView> views;
    std::vector<cuda::TileShape> shapes;
    int32_t rows = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      SY_ASSIGN_OR_RETURN(views.emplace_back(), AsBf16(parts[i], &copies[i]));
      SY_ASSIGN_OR_RETURN(shapes.emplace_back(), kernels::TileShapeOf(views[i]));
      rows += static_cast<int32_t>(views[i].out);
      cuda::TileShape same = shapes[0];
      same.rows = shapes[i].rows;
      if (!(same == shapes[i])) {
        return InvalidArgument("its parts are stored in different forms, which have to be one");
      }
    }
    cuda::TileShape shape = shapes[0];
    shape.rows = rows;
    std::vector<std::byte> tiles(shape.bytes());
    const bool biased =
        std::any_of(biases.begin(), biases.end(), [](const auto& b) { return !!b; });
    std::vector<float> bias(biased ? static_cast<size_t>(shape.row_tiles()) * cuda::kTileRows
                                   : size_t{0});
    int32_t first = 0;
    for (size_t i = 0; i < views.size(); ++i) {
      kernels::PackTiles(
          views[i], shape, [first](int32_t r) { return first + r; }, tiles.data());
      if (i < biases.size() && biases[i]) {
        kernels::ConvertToFloat(biases[i].data, biases[i].dtype, biases[i].size,
                                bias.data() + first);
      }
      first += static_cast<int32_t>(views[i].out);
    }
    return Put(shape, tiles, bias);
  };
  absl::StatusOr<SyCudaWeights> out = pack();
  if (!out.ok()) return Annotate(out.status(), name);
  return out;
}

absl::StatusOr<SyCudaWeights> Packer::Heads(std::string_view name,
                                            const std::vector<WeightView>& heads) {
  const auto pack = [&]() -> absl::StatusOr<SyCudaWeights> {
    std::vector<std::byte> tiles;
    cuda::TileShape shape;
    for (const WeightView& head : heads) {
      std::vector<bf16> copy;
      SY_ASSIGN_OR_RETURN(const WeightView view, AsBf16(head, &copy));
      SY_ASSIGN_OR_RETURN(shape, kernels::TileShapeOf(view));
      const size_t at = tiles.size();
      tiles.resize(at + shape.bytes());
      kernels::PackTiles(
          view, shape, [](int32_t r) { return r; }, tiles.data() + at);
    }
    return Put(shape, tiles);
  };
  absl::StatusOr<SyCudaWeights> out = pack();
  if (!out.ok()) return Annotate(out.status(), name);
  return out;
}

absl::StatusOr<SyCudaWeights> Packer::GateUp(const MlpWeights& w) {
  const auto pack = [&]() -> absl::StatusOr<SyCudaWeights> {
    std::vector<bf16> copies[2];
    SY_ASSIGN_OR_RETURN(const WeightView gate, AsBf16(w.gate, &copies[0]));
    SY_ASSIGN_OR_RETURN(const WeightView up, AsBf16(w.up, &copies[1]));
    SY_ASSIGN_OR_RETURN(cuda::TileShape shape, kernels::TileShapeOf(gate));
    SY_ASSIGN_OR_RETURN(const cuda::TileShape other, kernels::TileShapeOf(up));
    if (!(shape == other)) {
      return InvalidArgument("gate and up are stored in different forms, which have to be one");
    }
    shape.rows *= 2;
    std::vector<std::byte> tiles(shape.bytes());
    for (const bool is_up : {false, true}) {
      kernels::PackTiles(
          is_up ? up : gate, shape, [is_up](int32_t r) { return cuda::GateUpRow(r, is_up); },
          tiles.data());
    }
    return Put(shape, tiles);
  };
  absl::StatusOr<SyCudaWeights> out = pack();
  if (!out.ok()) return Annotate(out.status(), "gate_proj and up_proj");
  return out;
}

absl::StatusOr<SyCudaBackboneSpec> Packer::Spec(const RouterWeights& weights) {
  SyCudaBackboneSpec out = SizesOf(spec_, place_.positions);
  SY_ASSIGN_OR_RETURN(out.rope, Rope());
  absl::StatusOr<const uint16_t*> embedding = Embedding(weights.embedding);
  if (!embedding.ok()) return Annotate(embedding.status(), "the embedding");
  out.embedding = *embedding;
  SY_ASSIGN_OR_RETURN(out.final_norm, Vector(weights.final_norm));
  SY_ASSIGN_OR_RETURN(out.lm_head, Rows("lm_head", {weights.lm_head}));
  return out;
}

absl::Status Packer::Attention(const MlaWeights& m, SyCudaLayer* layer) {
  SY_ASSIGN_OR_RETURN(layer->in, Rows(m.q_a ? "q_a_proj and kv_a_proj" : "q_proj and kv_a_proj",
                                      {m.q_a ? m.q_a : m.q, m.kv_a}));
  SY_ASSIGN_OR_RETURN(layer->q_norm, Vector(m.q_a_norm));
  SY_ASSIGN_OR_RETURN(layer->k_norm, Vector(m.kv_a_norm));
  if (m.q_b) {
    SY_ASSIGN_OR_RETURN(layer->q_b, Rows("q_b_proj", {m.q_b}));
  }
  SY_ASSIGN_OR_RETURN(layer->key_up, Heads("kv_b_proj's keys", m.key_up));
  SY_ASSIGN_OR_RETURN(layer->value_up, Heads("kv_b_proj's values", m.value_up));
  SY_ASSIGN_OR_RETURN(layer->out, Rows("o_proj", {m.o}));
  return absl::OkStatus();
}

absl::Status Packer::Attention(const GqaWeights& g, SyCudaLayer* layer) {
  SY_ASSIGN_OR_RETURN(layer->in, Rows("q_proj, k_proj and v_proj", {g.q, g.k, g.v},
                                      {g.q_bias, g.k_bias, g.v_bias}));
  SY_ASSIGN_OR_RETURN(layer->q_norm, Vector(g.q_norm));
  SY_ASSIGN_OR_RETURN(layer->k_norm, Vector(g.k_norm));
  SY_ASSIGN_OR_RETURN(layer->out, Rows("o_proj", {g.o}, {g.o_bias}));
  SY_ASSIGN_OR_RETURN(layer->sinks, Vector(g.sinks));
  return absl::OkStatus();
}

absl::StatusOr<SyCudaLayer> Packer::Layer(int l, const LayerWeights& w) {
  SyCudaLayer layer{.window = spec_.layers[static_cast<size_t>(l)].window,
                    .kv_group = kv_.layers[static_cast<size_t>(l)].group,
                    .moe = spec_.layers[static_cast<size_t>(l)].moe};
  SY_ASSIGN_OR_RETURN(layer.input_norm, Vector(w.input_norm));
  SY_ASSIGN_OR_RETURN(layer.post_norm, Vector(w.post_attention_norm));
  const bool mla = spec_.attention.kind == AttentionKind::kMla;
  SY_RETURN_IF_ERROR(mla ? Attention(w.mla, &layer) : Attention(w.gqa, &layer));
  if (w.gate.weight) {
    SY_ASSIGN_OR_RETURN(layer.gate, Rows("the gate", {w.gate.weight}, {w.gate.bias}));
  }
  if (!w.gate.correction_bias.empty()) {
    SY_ASSIGN_OR_RETURN(layer.correction_bias, Floats(w.gate.correction_bias));
  }
  if (w.mlp) {
    SY_ASSIGN_OR_RETURN(layer.gate_up, GateUp(w.mlp));
    SY_ASSIGN_OR_RETURN(layer.down, Rows("down_proj", {w.mlp.down}));
  }
  return layer;
}

}  // namespace

SyCudaBackboneSpec SizesOf(const ModelSpec& spec, int64_t positions) {
  const AttentionSpec& a = spec.attention;
  const GateSpec& g = spec.gate;
  return {
      .hidden = spec.hidden,
      .vocab = spec.vocab,
      .layers = spec.num_layers(),
      .norm_eps = spec.norm_eps,
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
      .positions = static_cast<int32_t>(positions),
      .softmax_scale = a.softmax_scale,
      .gate = {.experts = spec.experts.count,
               .top_k = g.top_k,
               .score = static_cast<int32_t>(g.score),
               .group_score = static_cast<int32_t>(g.group_score),
               .groups = g.groups,
               .topk_groups = g.topk_groups,
               .normalise = g.normalise,
               .normalise_eps = g.normalise_eps,
               .scale = g.scale},
      .kv_groups = KvLayoutOf(spec).groups(),
      .block_tokens = kBlockTokens,
      .block_stride_bytes = static_cast<uint64_t>(KvStorage::BlockStrideBytes(spec, DType::kBF16))};
}

int64_t DeviceKvBytes(const ModelSpec& spec, int64_t blocks) {
  return KvStorage::BlockBytes(spec, DType::kBF16) * blocks;
}

void PlaceCache(const ModelSpec& spec, std::byte* cache, int64_t blocks, PackedBackbone* backbone) {
  const KvLayout layout = KvLayoutOf(spec);
  const int64_t slot_bytes = KvStorage::BlockStrideBytes(spec, DType::kBF16) * blocks;
  for (size_t l = 0; l < backbone->layers.size(); ++l) {
    backbone->layers[l].cache = cache + layout.layers[l].slot * slot_bytes;
  }
}

absl::StatusOr<PackedBackbone> PackBackbone(const ModelSpec& spec, const RouterWeights& weights,
                                            const BackbonePlace& place) {
  Packer packer(spec, place);
  PackedBackbone out;
  SY_ASSIGN_OR_RETURN(out.spec, packer.Spec(weights));
  for (int l = 0; l < spec.num_layers(); ++l) {
    absl::StatusOr<SyCudaLayer> layer = packer.Layer(l, weights.layers[static_cast<size_t>(l)]);
    if (!layer.ok()) return Annotate(layer.status(), fmt::format("layer {}", l));
    out.layers.push_back(*layer);
  }
  return out;
}

}  // namespace switchyard::router
