#include "services/model/fingerprint.h"

#include <fmt/format.h>
#include <xxhash.h>

namespace switchyard {
namespace {

class Text {
 public:
  // Numbers in fmt's shortest form, which reads back to the same bits.
  template <typename T>
  Text& Add(std::string_view name, const T& value) {
    text_ += fmt::format("{}={}\n", name, value);
    return *this;
  }
  template <typename E>
  Text& AddEnum(std::string_view name, E value) {
    return Add(name, static_cast<int>(value));
  }
  std::string Take() { return std::move(text_); }

 private:
  std::string text_;
};

void AddAttention(const AttentionSpec& a, Text& text) {
  text.AddEnum("attention", a.kind).Add("heads", a.heads).Add("kv_heads", a.kv_heads);
  text.Add("head_dim", a.head_dim).AddEnum("qk_norm", a.qk_norm).Add("clip_qkv", a.clip_qkv);
  text.Add("qkv_bias", a.qkv_bias).Add("out_bias", a.out_bias).Add("sinks", a.sinks);
  text.Add("q_lora_rank", a.q_lora_rank).Add("kv_lora_rank", a.kv_lora_rank);
  text.Add("qk_nope_head_dim", a.qk_nope_head_dim).Add("qk_rope_head_dim", a.qk_rope_head_dim);
  text.Add("v_head_dim", a.v_head_dim).Add("lora_norm_eps", a.lora_norm_eps);
  text.Add("split_kv_b", a.split_kv_b).Add("softmax_scale", a.softmax_scale);
  const RopeSpec& r = a.rope;
  text.AddEnum("rope.layout", r.layout).Add("rope.theta", r.theta).Add("rope.dim", r.dim);
  text.AddEnum("rope.scaling", r.scaling).Add("rope.factor", r.factor);
  text.Add("rope.original_max_position", r.original_max_position);
  text.Add("rope.beta_fast", r.beta_fast).Add("rope.beta_slow", r.beta_slow);
  text.Add("rope.truncate", r.truncate).Add("rope.attention_factor", r.attention_factor);
  text.Add("rope.low_freq_factor", r.low_freq_factor);
  text.Add("rope.high_freq_factor", r.high_freq_factor);
}

void AddExperts(const GateSpec& g, const ExpertSpec& e, Text& text) {
  text.AddEnum("gate.score", g.score).AddEnum("gate.group_score", g.group_score);
  text.Add("gate.groups", g.groups).Add("gate.topk_groups", g.topk_groups);
  text.Add("gate.top_k", g.top_k).Add("gate.bias", g.bias);
  text.Add("gate.correction_bias", g.correction_bias).Add("gate.normalise", g.normalise);
  text.Add("gate.normalise_eps", g.normalise_eps).Add("gate.scale", g.scale);
  text.Add("experts", e.count).Add("experts.intermediate", e.intermediate);
  text.Add("experts.shared_intermediate", e.shared_intermediate);
  text.AddEnum("experts.activation", e.activation).Add("experts.swiglu_limit", e.swiglu_limit);
  text.Add("experts.swiglu_alpha", e.swiglu_alpha).Add("experts.bias", e.bias);
  text.Add("experts.stacked", e.stacked);
  if (e.stacked_out_in) text.Add("experts.stacked_out_in", true);
}

}  // namespace

std::string CanonicalText(const ModelSpec& spec) {
  Text text;
  text.Add("architecture", spec.architecture).Add("hidden", spec.hidden).Add("vocab", spec.vocab);
  text.Add("dense_intermediate", spec.dense_intermediate).Add("norm_eps", spec.norm_eps);
  text.Add("tied_embeddings", spec.tied_embeddings).Add("max_position", spec.max_position);
  AddAttention(spec.attention, text);
  AddExperts(spec.gate, spec.experts, text);
  for (const LayerSpec& layer : spec.layers) {
    text.Add("layer", fmt::format("{} window {}", layer.moe ? "moe" : "dense", layer.window));
  }
  return text.Take();
}

std::string ModelFingerprint(const ModelSpec& spec, std::string_view content_digest) {
  std::string all = CanonicalText(spec);
  all += content_digest;
  const XXH128_hash_t hash = XXH3_128bits(all.data(), all.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace switchyard
