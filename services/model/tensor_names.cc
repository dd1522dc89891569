#include "services/model/tensor_names.h"

#include <charconv>

#include "services/base/check.h"
#include "services/base/status.h"

namespace switchyard {
namespace {

constexpr std::string_view kLayerPrefix = "model.layers.";

std::string LayerPrefix(int layer) { return fmt::format("{}{}.", kLayerPrefix, layer); }

// Where a family keeps its MoE block: Mixtral alone has a name of its own.
std::string_view MoeBlock(const ModelSpec& spec) {
  return spec.family == Family::kMixtral ? "block_sparse_moe" : "mlp";
}

AttentionTensors MlaTensors(const ModelSpec& spec, const std::string& p) {
  const AttentionSpec& a = spec.attention;
  const int64_t q_width = int64_t{a.heads} * (a.qk_nope_head_dim + a.qk_rope_head_dim);
  AttentionTensors t;
  if (a.q_lora_rank > 0) {
    t.q_a = {p + "q_a_proj.weight", {a.q_lora_rank, spec.hidden}};
    t.q_a_norm = {p + "q_a_layernorm.weight", {a.q_lora_rank}};
    t.q_b = {p + "q_b_proj.weight", {q_width, a.q_lora_rank}};
  } else {
    t.q = {p + "q_proj.weight", {q_width, spec.hidden}};
  }
  t.kv_a = {p + "kv_a_proj_with_mqa.weight", {a.kv_lora_rank + a.qk_rope_head_dim, spec.hidden}};
  t.kv_a_norm = {p + "kv_a_layernorm.weight", {a.kv_lora_rank}};
  if (a.split_kv_b) {
    t.k_b = {p + "k_b_proj.weight", {a.heads, a.kv_lora_rank, a.qk_nope_head_dim}};
    t.v_b = {p + "v_b_proj.weight", {a.heads, a.v_head_dim, a.kv_lora_rank}};
  } else {
    t.kv_b = {p + "kv_b_proj.weight",
              {int64_t{a.heads} * (a.qk_nope_head_dim + a.v_head_dim), a.kv_lora_rank}};
  }
  t.o = {p + "o_proj.weight", {spec.hidden, int64_t{a.heads} * a.v_head_dim}};
  return t;
}

AttentionTensors GqaTensors(const ModelSpec& spec, const std::string& p) {
  const AttentionSpec& a = spec.attention;
  const int64_t q_width = int64_t{a.heads} * a.head_dim;
  const int64_t kv_width = int64_t{a.kv_heads} * a.head_dim;
  AttentionTensors t;
  t.q = {p + "q_proj.weight", {q_width, spec.hidden}};
  t.k = {p + "k_proj.weight", {kv_width, spec.hidden}};
  t.v = {p + "v_proj.weight", {kv_width, spec.hidden}};
  t.o = {p + "o_proj.weight", {spec.hidden, q_width}};
  if (a.qkv_bias) {
    t.q_bias = {p + "q_proj.bias", {q_width}};
    t.k_bias = {p + "k_proj.bias", {kv_width}};
    t.v_bias = {p + "v_proj.bias", {kv_width}};
  }
  if (a.out_bias) t.o_bias = {p + "o_proj.bias", {spec.hidden}};
  if (a.qk_norm != QkNorm::kNone) {
    const bool per_head = a.qk_norm == QkNorm::kPerHead;
    t.q_norm = {p + "q_norm.weight", {per_head ? a.head_dim : q_width}};
    t.k_norm = {p + "k_norm.weight", {per_head ? a.head_dim : kv_width}};
  }
  if (a.sinks) t.sinks = {p + "sinks", {a.heads}};
  return t;
}

GateTensors GateTensorsOf(const ModelSpec& spec, const std::string& layer) {
  const std::string_view gate = spec.family == Family::kGptOss ? "router" : "gate";
  const std::string p = fmt::format("{}{}.{}.", layer, MoeBlock(spec), gate);
  GateTensors t;
  t.weight = {p + "weight", {spec.experts.count, spec.hidden}};
  if (spec.gate.bias) t.bias = {p + "bias", {spec.experts.count}};
  if (spec.gate.correction_bias) {
    t.correction_bias = {p + "e_score_correction_bias", {spec.experts.count}};
  }
  return t;
}

MlpTensors MlpTensorsOf(const std::string& p, int64_t hidden, int64_t intermediate) {
  return {.gate = {p + "gate_proj.weight", {intermediate, hidden}},
          .up = {p + "up_proj.weight", {intermediate, hidden}},
          .down = {p + "down_proj.weight", {hidden, intermediate}}};
}

LayerTensors LayerTensorsOf(const ModelSpec& spec, int layer) {
  const std::string p = LayerPrefix(layer);
  LayerTensors t;
  t.input_norm = {p + "input_layernorm.weight", {spec.hidden}};
  t.post_attention_norm = {p + "post_attention_layernorm.weight", {spec.hidden}};
  t.attention = spec.attention.kind == AttentionKind::kMla ? MlaTensors(spec, p + "self_attn.")
                                                           : GqaTensors(spec, p + "self_attn.");
  if (!spec.layers[static_cast<size_t>(layer)].moe) {
    t.mlp = MlpTensorsOf(p + "mlp.", spec.hidden, spec.dense_intermediate);
    return t;
  }
  t.gate = GateTensorsOf(spec, p);
  if (spec.experts.shared_intermediate > 0) {
    t.mlp = MlpTensorsOf(p + "mlp.shared_experts.", spec.hidden, spec.experts.shared_intermediate);
  }
  return t;
}

void AppendLayer(const LayerTensors& t, std::vector<TensorRef>& out) {
  const AttentionTensors& a = t.attention;
  for (const TensorRef* ref : {&t.input_norm,  &a.q,         &a.q_bias,
                               &a.q_a,         &a.q_a_norm,  &a.q_b,
                               &a.kv_a,        &a.kv_a_norm, &a.kv_b,
                               &a.k_b,         &a.v_b,       &a.k,
                               &a.k_bias,      &a.v,         &a.v_bias,
                               &a.q_norm,      &a.k_norm,    &a.sinks,
                               &a.o,           &a.o_bias,    &t.post_attention_norm,
                               &t.gate.weight, &t.gate.bias, &t.gate.correction_bias,
                               &t.mlp.gate,    &t.mlp.up,    &t.mlp.down}) {
    if (*ref) out.push_back(*ref);
  }
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace

BackboneTensors BackboneTensorsOf(const ModelSpec& spec) {
  BackboneTensors t;
  t.embedding = {"model.embed_tokens.weight", {spec.vocab, spec.hidden}};
  t.final_norm = {"model.norm.weight", {spec.hidden}};
  t.lm_head = t.embedding;
  if (!spec.tied_embeddings) t.lm_head.name = "lm_head.weight";
  for (int i = 0; i < spec.num_layers(); ++i) t.layers.push_back(LayerTensorsOf(spec, i));
  return t;
}

std::vector<TensorRef> AllTensors(const BackboneTensors& backbone) {
  std::vector<TensorRef> out = {backbone.embedding};
  for (const LayerTensors& layer : backbone.layers) AppendLayer(layer, out);
  out.push_back(backbone.final_norm);
  if (backbone.lm_head.name != backbone.embedding.name) out.push_back(backbone.lm_head);
  return out;
}

ExpertTensors ExpertTensorsOf(const ModelSpec& spec, int layer, int expert) {
  SY_CHECK(layer >= 0 && layer < spec.num_layers());
  SY_CHECK(spec.layers[static_cast<size_t>(layer)].moe);
  SY_CHECK(expert >= 0 && expert < spec.experts.count);
  const int64_t h = spec.hidden;
  const int64_t w = spec.experts.intermediate;
  const int64_t n = spec.experts.count;
  const std::string p = fmt::format("{}{}.experts.", LayerPrefix(layer), MoeBlock(spec));
  ExpertTensors t;
  if (spec.experts.stacked) {
    if (spec.experts.stacked_out_in) {
      t.gate_up = {{p + "gate_up_proj", {n, 2 * w, h}}, expert, 1};
      t.down = {{p + "down_proj", {n, h, w}}, expert, 1};
    } else {
      t.gate_up = {{p + "gate_up_proj", {n, h, 2 * w}}, expert, 1};
      t.down_in_out = {{p + "down_proj", {n, w, h}}, expert, 1};
    }
    if (spec.experts.bias) {
      t.gate_up_bias = {{p + "gate_up_proj_bias", {n, 2 * w}}, expert, 1};
      t.down_bias = {{p + "down_proj_bias", {n, h}}, expert, 1};
    }
    return t;
  }
  const bool mixtral = spec.family == Family::kMixtral;
  const auto slice = [&](std::string_view name, std::vector<int64_t> shape) {
    const int64_t rows = shape[0];
    return TensorSlice{{fmt::format("{}{}.{}", p, expert, name), std::move(shape)}, 0, rows};
  };
  t.gate = slice(mixtral ? "w1.weight" : "gate_proj.weight", {w, h});
  t.up = slice(mixtral ? "w3.weight" : "up_proj.weight", {w, h});
  t.down = slice(mixtral ? "w2.weight" : "down_proj.weight", {h, w});
  if (spec.experts.bias) {
    t.gate_bias = slice("gate_proj.bias", {w});
    t.up_bias = slice("up_proj.bias", {w});
    t.down_bias = slice("down_proj.bias", {h});
  }
  return t;
}

std::vector<TensorSlice> AllSlices(const ExpertTensors& expert) {
  std::vector<TensorSlice> out;
  for (const TensorSlice* slice :
       {&expert.gate, &expert.gate_bias, &expert.up, &expert.up_bias, &expert.gate_up,
        &expert.gate_up_bias, &expert.down, &expert.down_in_out, &expert.down_bias}) {
    if (*slice) out.push_back(*slice);
  }
  return out;
}

absl::Status CheckTensor(const TensorRef& expected, DType dtype, const std::vector<int64_t>& shape,
                         bool scales) {
  const bool plain = dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
  if (!plain && !((IsBlocked(dtype) || scales) && expected.shape.size() > 1)) {
    return Unimplemented(
        "tensor {}: dtype {} is not supported; supported: float32, bfloat16, float16, and of "
        "matrices GGUF's blocks (Q8_0, Q4_0, Q4_K, Q5_K, Q6_K, MXFP4) and what quantization_config "
        "says the scales of",
        expected.name, Name(dtype));
  }
  if (shape != expected.shape) {
    return InvalidArgument("tensor {}: shape is {}, expected {} by config.json", expected.name,
                           ShapeText(shape), ShapeText(expected.shape));
  }
  constexpr int64_t kPiece = 32;  // of a row of activations that meets integers
  const int64_t block = scales && dtype != DType::kF8E4M3 ? kPiece : BlockOf(dtype).elements;
  if (!shape.empty() && shape.back() % block != 0) {
    return InvalidArgument("tensor {}: rows of {} values are not whole blocks of {} ({})",
                           expected.name, shape.back(), block, Name(dtype));
  }
  return absl::OkStatus();
}

int LayerOfTensor(std::string_view name) {
  if (!name.starts_with(kLayerPrefix)) return -1;
  name.remove_prefix(kLayerPrefix.size());
  int layer = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  return error == std::errc() && end != name.data() + name.size() && *end == '.' ? layer : -1;
}

}  // namespace switchyard
