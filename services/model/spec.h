// What a checkpoint's architecture is, as plain data: everything that the router, the workers and
// `inspect` need to know of config.json, in one vocabulary for all families. Made by SpecFromHf
// (spec_from_hf.h), immutable afterwards. Sources per field: docs of numerics in
// docs/internals/numerics.md and each family's modeling file in Hugging Face transformers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "services/tensor/dtype.h"

namespace switchyard {

enum class Family { kDeepseekV2, kDeepseekV3, kQwen3Moe, kMixtral, kOlmoe, kGptOss };

enum class AttentionKind { kMla, kGqa };
enum class RopeLayout { kInterleaved, kHalfSplit };
enum class RopeScaling { kNone, kLinear, kYarn, kLlama3 };
enum class QkNorm { kNone, kPerHead, kWholeProjection };

struct RopeSpec {
  RopeLayout layout = RopeLayout::kHalfSplit;
  double theta = 10000.0;
  int dim = 0;  // rotated dimensions of a head
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  double original_max_position = 0;
  // YaRN
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  bool truncate = true;           // floor/ceil the correction range
  double attention_factor = 1.0;  // cos and sin are multiplied by this
  // Llama 3
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
};

struct AttentionSpec {
  AttentionKind kind = AttentionKind::kGqa;
  int heads = 0;
  // GQA
  int kv_heads = 0;
  int head_dim = 0;
  QkNorm qk_norm = QkNorm::kNone;
  float clip_qkv = 0;     // 0: off
  bool qkv_bias = false;  // bias on q, k and v projections
  bool out_bias = false;  // bias on the output projection
  bool sinks = false;     // one extra logit a head, dropped after the softmax
  // MLA
  int q_lora_rank = 0;   // 0: one q_proj
  int kv_lora_rank = 0;  // width of the cached latent
  int qk_nope_head_dim = 0;
  int qk_rope_head_dim = 0;
  int v_head_dim = 0;
  // kv_b_proj lies in two tensors, k's half with each head transposed (GGUF).
  bool split_kv_b = false;
  float lora_norm_eps = 1e-6f;  // q_a_layernorm and kv_a_layernorm, whatever rms_norm_eps says

  float softmax_scale = 0;  // includes YaRN's factor for DeepSeek
  RopeSpec rope;
};

enum class GateScore { kSigmoid, kSoftmax, kSoftmaxAfterTopK };
enum class GroupScore { kNone, kMax, kTop2Sum };

struct GateSpec {
  GateScore score = GateScore::kSoftmax;
  GroupScore group_score = GroupScore::kNone;
  int groups = 1;  // n_group; 1 where the model has none
  int topk_groups = 1;
  int top_k = 0;
  bool bias = false;             // a linear bias on the gate's logits (gpt-oss)
  bool correction_bias = false;  // e_score_correction_bias: for selection only (DeepSeek-V3)
  bool normalise = false;        // divide the chosen weights by their sum
  float normalise_eps = 0;       // added to the sum (1e-20 for DeepSeek-V3)
  float scale = 1.0f;            // routed_scaling_factor
};

enum class Activation { kSiluMul, kClampedSwiglu };

struct ExpertSpec {
  int count = 0;                // routed experts a MoE layer
  int intermediate = 0;         // width of a routed expert
  int shared_intermediate = 0;  // width of the shared expert; 0: none
  Activation activation = Activation::kSiluMul;
  float swiglu_limit = 0;  // gpt-oss
  float swiglu_alpha = 1.702f;
  bool bias = false;
  bool stacked = false;         // one tensor for all experts, [E, in, out], gate and up interleaved
  bool stacked_out_in = false;  // the same, but [E, out, in] (MXFP4)
};

struct LayerSpec {
  bool moe = false;
  int window =
      0;  // sliding window in tokens: key j is visible to query i iff i - j < window; 0: all
};

struct ModelSpec {
  Family family = Family::kDeepseekV3;
  std::string architecture;  // "DeepseekV3ForCausalLM"
  std::string model_type;    // "deepseek_v3"
  int hidden = 0;
  int vocab = 0;
  int dense_intermediate = 0;  // of layers without experts
  float norm_eps = 1e-6f;
  bool tied_embeddings = false;
  int max_position = 0;
  DType weight_dtype = DType::kBF16;  // as config.json declares; each tensor has its own
  AttentionSpec attention;
  GateSpec gate;
  ExpertSpec experts;
  std::vector<LayerSpec> layers;
  int skipped_layers = 0;  // model.layers.N beyond num_hidden_layers (multi-token prediction)

  // Generation defaults (generation_config.json wins over config.json).
  int bos_id = -1;
  std::vector<int> eos_ids;

  int num_layers() const { return static_cast<int>(layers.size()); }
  // Experts of one reduction group (ExpertGroup below); groups are contiguous ranges of ids.
  int experts_per_group() const { return gate.groups > 1 ? experts.count / gate.groups : 1; }
  // The reduction group of an expert: the gate's own group, or the expert itself where the model
  // has none. Sums are made inside a group first (services/expertwire/layout.h).
  int reduction_group(int expert) const { return expert / experts_per_group(); }
  int num_reduction_groups() const { return experts.count / experts_per_group(); }
};

}  // namespace switchyard
