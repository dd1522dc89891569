// DeepSeek-V2 and V3/R1: multi-head latent attention, shared experts, group-limited gates.
#include <cmath>

#include "services/base/status.h"
#include "services/model/families/families.h"

namespace switchyard::model {
namespace {

absl::Status ReadMla(const ConfigReader& config, ModelSpec& spec) {
  AttentionSpec& a = spec.attention;
  a.kind = AttentionKind::kMla;
  SY_ASSIGN_OR_RETURN(a.heads, config.Int("num_attention_heads", 1, kMaxHeads));
  SY_ASSIGN_OR_RETURN(const int kv_heads, config.Int("num_key_value_heads", 1, kMaxHeads, a.heads));
  if (kv_heads != a.heads) {
    return config.Unsupported("num_key_value_heads", fmt::format("{}", kv_heads),
                              fmt::format("num_attention_heads ({})", a.heads));
  }
  SY_ASSIGN_OR_RETURN(a.q_lora_rank, config.Int("q_lora_rank", 0, kMaxLoraRank, 0));
  SY_ASSIGN_OR_RETURN(a.kv_lora_rank, config.Int("kv_lora_rank", 1, kMaxLoraRank));
  SY_ASSIGN_OR_RETURN(a.qk_nope_head_dim, config.Int("qk_nope_head_dim", 1, kMaxHeadDim));
  SY_ASSIGN_OR_RETURN(a.qk_rope_head_dim, config.Int("qk_rope_head_dim", 2, kMaxHeadDim));
  SY_ASSIGN_OR_RETURN(a.v_head_dim, config.Int("v_head_dim", 1, kMaxHeadDim));
  SY_RETURN_IF_ERROR(config.RequireBool("attention_bias", false, false));
  a.kv_heads = a.heads;
  a.softmax_scale = static_cast<float>(
      1.0 / std::sqrt(static_cast<double>(a.qk_nope_head_dim + a.qk_rope_head_dim)));
  a.rope.dim = a.qk_rope_head_dim;
  return ReadRope(config, 10000.0, spec);
}

absl::Status ReadExperts(const ConfigReader& config, ModelSpec& spec) {
  ExpertSpec& e = spec.experts;
  SY_ASSIGN_OR_RETURN(e.count, config.Int({"n_routed_experts", "num_experts", "num_local_experts"},
                                          1, kMaxExperts));
  SY_ASSIGN_OR_RETURN(e.intermediate, config.Int("moe_intermediate_size", 1, kMaxIntermediate));
  SY_ASSIGN_OR_RETURN(const int shared, config.Int("n_shared_experts", 0, 1024, 0));
  if (int64_t{shared} * e.intermediate > kMaxIntermediate) {
    return InvalidArgument("{}: n_shared_experts {} × moe_intermediate_size {} exceeds {}",
                           config.path(), shared, e.intermediate, kMaxIntermediate);
  }
  e.shared_intermediate = shared * e.intermediate;
  SY_ASSIGN_OR_RETURN(spec.gate.top_k, config.Int("num_experts_per_tok", 1, e.count));
  SY_ASSIGN_OR_RETURN(const double scale,
                      config.Double("routed_scaling_factor", -1e6, 1e6,
                                    spec.family == Family::kDeepseekV3 ? 2.5 : 1.0));
  spec.gate.scale = static_cast<float>(scale);
  return absl::OkStatus();
}

absl::Status ReadLayers(const ConfigReader& config, int first_dense_default, ModelSpec& spec) {
  SY_ASSIGN_OR_RETURN(spec.dense_intermediate,
                      config.Int("intermediate_size", 1, kMaxIntermediate));
  SY_ASSIGN_OR_RETURN(const int first_moe,
                      config.Int("first_k_dense_replace", 0, kMaxLayers, first_dense_default));
  SY_ASSIGN_OR_RETURN(const int every, config.Int("moe_layer_freq", 1, kMaxLayers, 1));
  for (int i = 0; i < spec.num_layers(); ++i) {
    spec.layers[static_cast<size_t>(i)].moe = i >= first_moe && i % every == 0;
  }
  SY_ASSIGN_OR_RETURN(spec.skipped_layers,
                      config.Int({"num_nextn_predict_layers", "num_mtp_layers"}, 0, kMaxLayers, 0));
  return absl::OkStatus();
}

// The gate's groups, for the methods that limit a token to some of them.
absl::Status ReadGroups(const ConfigReader& config, GroupScore score, ModelSpec& spec) {
  GateSpec& g = spec.gate;
  SY_ASSIGN_OR_RETURN(g.groups, config.Int("n_group", 1, spec.experts.count, 1));
  SY_ASSIGN_OR_RETURN(g.topk_groups, config.Int("topk_group", 1, g.groups, g.groups));
  if (spec.experts.count % g.groups != 0) {
    return InvalidArgument("{}: n_group {} does not divide the {} experts", config.path(), g.groups,
                           spec.experts.count);
  }
  const int per_group = spec.experts.count / g.groups;
  if (g.groups > 1 && score == GroupScore::kTop2Sum && per_group < 2) {
    return InvalidArgument(
        "{}: n_group {} leaves {} expert a group, but the two best of a group "
        "make its score",
        config.path(), g.groups, per_group);
  }
  if (g.topk_groups * per_group < g.top_k) {
    return InvalidArgument(
        "{}: num_experts_per_tok is {}, but topk_group {} × {} experts a group "
        "leaves only {} to choose from",
        config.path(), g.top_k, g.topk_groups, per_group, g.topk_groups * per_group);
  }
  // One group is always kept: no limit at all.
  g.group_score = g.groups > 1 ? score : GroupScore::kNone;
  return absl::OkStatus();
}

absl::Status RequireString(const ConfigReader& config, std::string_view field,
                           std::string_view supported) {
  SY_ASSIGN_OR_RETURN(const std::string value, config.String({field}, supported));
  if (value == supported) return absl::OkStatus();
  return config.Unsupported(field, fmt::format("\"{}\"", value), fmt::format("\"{}\"", supported));
}

}  // namespace

absl::Status ReadDeepseekV2(const ConfigReader& config, ModelSpec& spec) {
  SY_RETURN_IF_ERROR(ReadMla(config, spec));
  spec.attention.rope.layout = RopeLayout::kInterleaved;
  SY_RETURN_IF_ERROR(config.RequireBool("mlp_bias", false, false));
  SY_RETURN_IF_ERROR(RequireString(config, "scoring_func", "softmax"));
  SY_RETURN_IF_ERROR(ReadExperts(config, spec));
  SY_RETURN_IF_ERROR(ReadLayers(config, 0, spec));
  spec.gate.score = GateScore::kSoftmax;
  // norm_topk_prob is ignored here, as the reference implementation does.
  SY_ASSIGN_OR_RETURN(const std::string method, config.String({"topk_method"}, "greedy"));
  if (method == "group_limited_greedy") return ReadGroups(config, GroupScore::kMax, spec);
  if (method == "greedy") return absl::OkStatus();
  return config.Unsupported("topk_method", fmt::format("\"{}\"", method),
                            "\"greedy\", \"group_limited_greedy\"");
}

absl::Status ReadDeepseekV3(const ConfigReader& config, ModelSpec& spec) {
  SY_RETURN_IF_ERROR(ReadMla(config, spec));
  SY_ASSIGN_OR_RETURN(const bool interleave, config.Bool("rope_interleave", true));
  spec.attention.rope.layout = interleave ? RopeLayout::kInterleaved : RopeLayout::kHalfSplit;
  SY_RETURN_IF_ERROR(RequireString(config, "scoring_func", "sigmoid"));
  SY_RETURN_IF_ERROR(RequireString(config, "topk_method", "noaux_tc"));
  SY_RETURN_IF_ERROR(ReadExperts(config, spec));
  SY_RETURN_IF_ERROR(ReadLayers(config, 3, spec));
  spec.gate.score = GateScore::kSigmoid;
  spec.gate.correction_bias = true;
  SY_ASSIGN_OR_RETURN(spec.gate.normalise, config.Bool("norm_topk_prob", true));
  spec.gate.normalise_eps = 1e-20f;
  return ReadGroups(config, GroupScore::kTop2Sum, spec);
}

}  // namespace switchyard::model
