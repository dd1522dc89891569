// One function a family: the part of config.json that only that family has. Internal to
// services/model. Each fills what SpecFromHf has not filled already (common.h lists that).
#pragma once

#include "absl/status/status.h"
#include "services/model/config_reader.h"
#include "services/model/spec.h"

namespace switchyard::model {

// Bounds of what we accept, generous beyond any published model, small enough that a product of
// two sizes (and an element size) never overflows 63 bits.
constexpr int kMaxHidden = 1 << 17;
constexpr int kMaxVocab = 1 << 24;
constexpr int kMaxIntermediate = 1 << 20;
constexpr int kMaxLayers = 1024;
constexpr int kMaxHeads = 4096;
constexpr int kMaxHeadDim = 4096;
constexpr int kMaxLoraRank = 1 << 16;
constexpr int kMaxExperts = 1 << 14;
constexpr int kMaxPosition = 1 << 27;

// In: family, hidden, vocab, layers (sized), norm_eps, max_position, tied_embeddings, dtype.
// Out: attention (rope apart from its layout only after ReadRope), gate, experts, layers.
absl::Status ReadDeepseekV2(const ConfigReader& config, ModelSpec& spec);
absl::Status ReadDeepseekV3(const ConfigReader& config, ModelSpec& spec);
absl::Status ReadQwen3Moe(const ConfigReader& config, ModelSpec& spec);
absl::Status ReadMixtral(const ConfigReader& config, ModelSpec& spec);
absl::Status ReadOlmoe(const ConfigReader& config, ModelSpec& spec);
absl::Status ReadGptOss(const ConfigReader& config, ModelSpec& spec);

// heads, kv_heads, head_dim (default hidden / heads), softmax_scale and rope.dim of a GQA family.
// `kv_default` is used where num_key_value_heads is absent, 0 for "as many as heads".
absl::Status ReadGqa(const ConfigReader& config, int kv_default, ModelSpec& spec);

// rope_parameters, or rope_theta and rope_scaling. rope.dim and rope.layout must be set.
// mscale_all_dim of DeepSeek goes into attention.softmax_scale, which must be set.
absl::Status ReadRope(const ConfigReader& config, double default_theta, ModelSpec& spec);

}  // namespace switchyard::model
