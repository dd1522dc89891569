#include "services/checkpoint/gguf_names.h"

#include <algorithm>

#include "services/base/status.h"

namespace switchyard::checkpoint {
namespace {

struct Pair {
  std::string_view gguf;
  std::string_view hugging_face;
};

constexpr Pair kGlobal[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};

// Of a layer, without ".weight" and ".bias".
constexpr Pair kLayer[] = {
    {"attn_norm", "input_layernorm"},
    {"ffn_norm", "post_attention_layernorm"},
    {"post_attention_norm", "post_attention_layernorm"},  // gpt-oss
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"attn_q_a", "self_attn.q_a_proj"},
    {"attn_q_a_norm", "self_attn.q_a_layernorm"},
    {"attn_q_b", "self_attn.q_b_proj"},
    {"attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"},
    {"attn_kv_a_norm", "self_attn.kv_a_layernorm"},
    {"attn_kv_b", "self_attn.kv_b_proj"},
    {"attn_k_b", "self_attn.k_b_proj"},
    {"attn_v_b", "self_attn.v_b_proj"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    {"ffn_gate_shexp", "mlp.shared_experts.gate_proj"},
    {"ffn_up_shexp", "mlp.shared_experts.up_proj"},
    {"ffn_down_shexp", "mlp.shared_experts.down_proj"},
};

// Of all experts of a layer.
constexpr Pair kExperts[] = {
    {"ffn_gate_exps", "gate_proj"}, {"ffn_up_exps", "up_proj"}, {"ffn_down_exps", "down_proj"}};
constexpr Pair kMixtralExperts[] = {
    {"ffn_gate_exps", "w1"}, {"ffn_up_exps", "w3"}, {"ffn_down_exps", "w2"}};

template <size_t N>
std::string_view Find(const Pair (&pairs)[N], std::string_view name) {
  const auto* it = std::ranges::find(pairs, name, &Pair::gguf);
  return it == std::end(pairs) ? std::string_view() : it->hugging_face;
}

// What ends in ".weight" or ".bias", cut in front of the dot.
struct Parts {
  std::string_view stem;
  std::string_view suffix;
};

Parts Cut(std::string_view name) {
  const size_t dot = std::min(name.rfind('.'), name.size());
  return {name.substr(0, dot), name.substr(dot)};
}

// The part of a layer's tensor behind "blk.N.", empty for others; `layer` becomes N.
std::string_view InLayer(std::string_view name, std::string_view& layer) {
  constexpr std::string_view kPrefix = "blk.";
  if (!name.starts_with(kPrefix)) return {};
  name.remove_prefix(kPrefix.size());
  const size_t dot = name.find('.');
  if (dot == 0 || dot == std::string_view::npos) return {};
  layer = name.substr(0, dot);
  if (layer.find_first_not_of("0123456789") != std::string_view::npos) return {};
  return name.substr(dot + 1);
}

}  // namespace

HuggingFaceName HuggingFaceNameOf(std::string_view architecture, std::string_view tensor) {
  if (const auto name = Find(kGlobal, tensor); !name.empty()) return {.name = std::string(name)};
  std::string_view layer;
  const std::string_view rest = InLayer(tensor, layer);
  const auto [stem, suffix] = Cut(rest);
  const std::string p = fmt::format("model.layers.{}.", layer);
  const bool mixtral = architecture == "llama";
  const std::string_view block = mixtral ? "block_sparse_moe" : "mlp";
  if (rest == "attn_sinks.weight") return {.name = p + "self_attn.sinks"};
  if (rest == "exp_probs_b.bias") return {.name = p + "mlp.gate.e_score_correction_bias"};
  if (stem == "ffn_gate_inp") {
    const std::string_view gate = architecture == "gpt-oss" ? "router" : "gate";
    return {.name = fmt::format("{}{}.{}{}", p, block, gate, suffix)};
  }
  if (const auto name = Find(kLayer, stem); !name.empty()) {
    return {.name = fmt::format("{}{}{}", p, name, suffix)};
  }
  const auto name = mixtral ? Find(kMixtralExperts, stem) : Find(kExperts, stem);
  if (name.empty()) return {.name = std::string(tensor)};
  return {.name = fmt::format("{}{}.experts.", p, block),
          .stacked = true,
          .of_expert = fmt::format(".{}{}", name, suffix)};
}

std::string_view WhyUnsupported(std::string_view tensor) {
  std::string_view layer;
  const auto stem = Cut(InLayer(tensor, layer)).stem;
  if (tensor == "rope_freqs.weight") {
    return "scales rope by a table, which is not supported; supported: none, linear, yarn";
  }
  if (stem == "attn_qkv" || stem == "ffn_gate_up_exps") {
    return "is fused, which is not supported; convert the model again without fusing";
  }
  return "";
}

}  // namespace switchyard::checkpoint
