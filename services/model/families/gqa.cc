// Families with grouped-query attention: Qwen3-MoE, Mixtral, OLMoE and gpt-oss.
#include <cmath>
#include <nlohmann/json.hpp>

#include "services/base/status.h"
#include "services/model/families/families.h"

namespace switchyard::model {
namespace {

absl::Status ReadExperts(const ConfigReader& config, std::string_view width_field,
                         ModelSpec& spec) {
  ExpertSpec& e = spec.experts;
  SY_ASSIGN_OR_RETURN(e.count, config.Int({"num_experts", "num_local_experts"}, 1, kMaxExperts));
  SY_ASSIGN_OR_RETURN(e.intermediate, config.Int(width_field, 1, kMaxIntermediate));
  SY_ASSIGN_OR_RETURN(spec.gate.top_k, config.Int("num_experts_per_tok", 1, e.count));
  return absl::OkStatus();
}

void SetAllLayers(bool moe, int window, ModelSpec& spec) {
  for (LayerSpec& layer : spec.layers) layer = {.moe = moe, .window = window};
}

// Whether the projections have biases; one field for all four in these families.
absl::Status ReadAttentionBias(const ConfigReader& config, bool fallback, ModelSpec& spec) {
  SY_ASSIGN_OR_RETURN(const bool bias, config.Bool("attention_bias", fallback));
  spec.attention.qkv_bias = bias;
  spec.attention.out_bias = bias;
  return absl::OkStatus();
}

// Which layers have experts: every decoder_sparse_step-th, apart from mlp_only_layers.
absl::Status ReadQwenLayers(const ConfigReader& config, ModelSpec& spec) {
  SY_ASSIGN_OR_RETURN(const int step, config.Int("decoder_sparse_step", 1, kMaxLayers, 1));
  for (int i = 0; i < spec.num_layers(); ++i) {
    spec.layers[static_cast<size_t>(i)].moe = (i + 1) % step == 0;
  }
  const nlohmann::json* dense = config.Field("mlp_only_layers");
  if (dense == nullptr) return absl::OkStatus();
  if (!dense->is_array()) return config.Wrong("mlp_only_layers", *dense, "a list of layers");
  for (const nlohmann::json& layer : *dense) {
    if (!layer.is_number_unsigned() ||
        layer.get<uint64_t>() >= static_cast<uint64_t>(spec.num_layers())) {
      return config.Wrong("mlp_only_layers", layer,
                          fmt::format("layers in [0, {}]", spec.num_layers() - 1));
    }
    spec.layers[layer.get<size_t>()].moe = false;
  }
  return absl::OkStatus();
}

absl::Status ReadGptOssLayers(const ConfigReader& config, ModelSpec& spec) {
  SetAllLayers(true, 0, spec);
  const nlohmann::json* types = config.Field("layer_types");
  const size_t layers = spec.layers.size();
  if (types != nullptr && (!types->is_array() || types->size() != layers)) {
    return config.Wrong("layer_types", *types, fmt::format("a list of {} layer types", layers));
  }
  SY_ASSIGN_OR_RETURN(const int window, config.Int("sliding_window", 1, kMaxPosition, 128));
  for (size_t i = 0; i < layers; ++i) {
    const nlohmann::json type = types != nullptr ? (*types)[i]
                                : i % 2 == 0     ? "sliding_attention"
                                                 : "full_attention";
    if (type == "sliding_attention") {
      spec.layers[i].window = window;
    } else if (type != "full_attention") {
      return config.Unsupported(fmt::format("layer_types[{}]", i), type.dump(),
                                "\"sliding_attention\", \"full_attention\"");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadGqa(const ConfigReader& config, int kv_default, ModelSpec& spec) {
  AttentionSpec& a = spec.attention;
  a.kind = AttentionKind::kGqa;
  SY_ASSIGN_OR_RETURN(a.heads, config.Int("num_attention_heads", 1, kMaxHeads));
  SY_ASSIGN_OR_RETURN(a.kv_heads, config.Int("num_key_value_heads", 1, a.heads,
                                             kv_default != 0 ? kv_default : a.heads));
  if (a.heads % a.kv_heads != 0) {
    return InvalidArgument("{}: num_key_value_heads {} does not divide num_attention_heads {}",
                           config.path(), a.kv_heads, a.heads);
  }
  if (!config.Has("head_dim") && spec.hidden % a.heads != 0) {
    return InvalidArgument(
        "{}: num_attention_heads {} does not divide hidden_size {}, and there "
        "is no head_dim",
        config.path(), a.heads, spec.hidden);
  }
  SY_ASSIGN_OR_RETURN(a.head_dim, config.Int("head_dim", 2, kMaxHeadDim, spec.hidden / a.heads));
  if (a.head_dim < 2 || a.head_dim > kMaxHeadDim) {
    return InvalidArgument("{}: hidden_size ÷ num_attention_heads is {}, expected 2 to {}",
                           config.path(), a.head_dim, kMaxHeadDim);
  }
  a.softmax_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.head_dim)));
  a.rope.dim = a.head_dim;
  a.rope.layout = RopeLayout::kHalfSplit;
  return absl::OkStatus();
}

absl::Status ReadQwen3Moe(const ConfigReader& config, ModelSpec& spec) {
  SY_RETURN_IF_ERROR(ReadGqa(config, 0, spec));
  SY_RETURN_IF_ERROR(ReadRope(config, 10000.0, spec));
  SY_RETURN_IF_ERROR(ReadAttentionBias(config, false, spec));
  spec.attention.qk_norm = QkNorm::kPerHead;
  SY_RETURN_IF_ERROR(ReadExperts(config, "moe_intermediate_size", spec));
  SY_ASSIGN_OR_RETURN(spec.dense_intermediate,
                      config.Int("intermediate_size", 1, kMaxIntermediate));
  SY_ASSIGN_OR_RETURN(spec.gate.normalise, config.Bool("norm_topk_prob", false));
  SY_ASSIGN_OR_RETURN(const bool sliding, config.Bool("use_sliding_window", false));
  int window = 0;
  if (sliding) {
    SY_ASSIGN_OR_RETURN(window, config.Int("sliding_window", 1, kMaxPosition, 0));
  }
  // All layers slide; the reference implementation does not look at max_window_layers.
  SetAllLayers(true, window, spec);
  return ReadQwenLayers(config, spec);
}

absl::Status ReadMixtral(const ConfigReader& config, ModelSpec& spec) {
  SY_RETURN_IF_ERROR(ReadGqa(config, 0, spec));
  SY_RETURN_IF_ERROR(ReadRope(config, 1000000.0, spec));
  SY_RETURN_IF_ERROR(ReadExperts(config, "intermediate_size", spec));
  spec.gate.normalise = true;
  SY_ASSIGN_OR_RETURN(const int window, config.Int("sliding_window", 1, kMaxPosition, 0));
  SetAllLayers(true, window, spec);
  return absl::OkStatus();
}

absl::Status ReadOlmoe(const ConfigReader& config, ModelSpec& spec) {
  SY_RETURN_IF_ERROR(ReadGqa(config, 0, spec));
  SY_RETURN_IF_ERROR(ReadRope(config, 10000.0, spec));
  SY_RETURN_IF_ERROR(ReadAttentionBias(config, false, spec));
  spec.attention.qk_norm = QkNorm::kWholeProjection;
  SY_ASSIGN_OR_RETURN(const double clip, config.Double("clip_qkv", 1e-6, 1e9, 0));
  spec.attention.clip_qkv = static_cast<float>(clip);
  SY_RETURN_IF_ERROR(ReadExperts(config, "intermediate_size", spec));
  SY_ASSIGN_OR_RETURN(spec.gate.normalise, config.Bool("norm_topk_prob", false));
  SetAllLayers(true, 0, spec);
  return absl::OkStatus();
}

absl::Status ReadGptOss(const ConfigReader& config, ModelSpec& spec) {
  SY_RETURN_IF_ERROR(ReadGqa(config, 8, spec));
  if (!config.Has("rope_scaling") && !config.Has("rope_parameters")) {
    return InvalidArgument("{}: rope_scaling is missing", config.path());
  }
  SY_RETURN_IF_ERROR(ReadRope(config, 150000.0, spec));
  SY_RETURN_IF_ERROR(ReadAttentionBias(config, true, spec));
  spec.attention.sinks = true;
  SY_RETURN_IF_ERROR(ReadExperts(config, "intermediate_size", spec));
  spec.gate.score = GateScore::kSoftmaxAfterTopK;
  spec.gate.bias = true;
  ExpertSpec& e = spec.experts;
  e.activation = Activation::kClampedSwiglu;
  e.bias = true;
  e.stacked = true;
  SY_ASSIGN_OR_RETURN(const double limit, config.Double("swiglu_limit", 1e-6, 1e9, 7.0));
  SY_ASSIGN_OR_RETURN(const double alpha, config.Double("swiglu_alpha", -1e6, 1e6, 1.702));
  e.swiglu_limit = static_cast<float>(limit);
  e.swiglu_alpha = static_cast<float>(alpha);
  return ReadGptOssLayers(config, spec);
}

}  // namespace switchyard::model
