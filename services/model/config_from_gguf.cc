#include <algorithm>
#include <initializer_list>

#include "services/base/status.h"
#include "services/model/config_reader.h"
#include "services/model/families/families.h"
#include "services/model/model_config.h"

namespace switchyard {
namespace {

using model::ConfigReader;
using nlohmann::json;

// One GGUF model on its way to a config.json. Values go over as they are, for SpecFromHf to check;
// what is looked at here is checked here.
class Translation {
 public:
  Translation(const std::vector<gguf::Header>& files, std::string architecture)
      : files_(files),
        architecture_(std::move(architecture)),
        reader_(files[0].metadata, files[0].path) {}

  const ConfigReader& reader() const { return reader_; }
  json& config() { return config_; }
  std::string Key(std::string_view name) const { return fmt::format("{}.{}", architecture_, name); }
  const json* Field(std::string_view name) const { return reader_.Field(Key(name)); }
  bool Has(std::string_view name) const { return Field(name) != nullptr; }

  bool HasTensor(std::string_view name) const {
    return std::ranges::any_of(files_, [&](const gguf::Header& file) {
      return std::ranges::find(file.tensors, name, &gguf::Tensor::name) != file.tensors.end();
    });
  }

  absl::StatusOr<int> Int(std::string_view name, int min, int max,
                          std::optional<int> fallback = std::nullopt) const {
    return reader_.Int(Key(name), min, max, fallback);
  }
  absl::StatusOr<double> Double(std::string_view name, double min, double max,
                                std::optional<double> fallback = std::nullopt) const {
    return reader_.Double(Key(name), min, max, fallback);
  }

  // The key's value becomes the field's. A list of one value a layer counts as that value where all
  // are the same.
  absl::Status CopyIfThere(std::string_view name, const char* field) {
    const json* value = Field(name);
    if (value == nullptr) return absl::OkStatus();
    if (value->is_array() && !value->empty()) {
      const json& first = (*value)[0];
      if (std::ranges::any_of(*value, [&](const json& other) { return other != first; })) {
        return reader_.Unsupported(Key(name), "another value from layer to layer",
                                   "one value for all layers");
      }
      value = &first;
    }
    config_[field] = *value;
    return absl::OkStatus();
  }
  absl::Status Copy(std::string_view name, const char* field) {
    if (!Has(name)) return InvalidArgument("{}: {} is missing", reader_.path(), Key(name));
    return CopyIfThere(name, field);
  }

  // UNIMPLEMENTED unless the number is absent or has the one value that we support.
  absl::Status Require(std::string_view name, double supported) {
    SY_ASSIGN_OR_RETURN(const double value, Double(name, -1e30, 1e30, supported));
    if (value == supported) return absl::OkStatus();
    return reader_.Unsupported(Key(name), fmt::format("{}", value), fmt::format("{}", supported));
  }

 private:
  const std::vector<gguf::Header>& files_;
  const std::string architecture_;
  const ConfigReader reader_;
  json config_ = json::object();
};

absl::Status TranslateSizes(Translation& t) {
  SY_RETURN_IF_ERROR(t.Copy("embedding_length", "hidden_size"));
  SY_RETURN_IF_ERROR(t.Copy("context_length", "max_position_embeddings"));
  SY_RETURN_IF_ERROR(t.Copy("attention.head_count", "num_attention_heads"));
  SY_RETURN_IF_ERROR(t.Copy("attention.layer_norm_rms_epsilon", "rms_norm_eps"));
  SY_RETURN_IF_ERROR(t.Copy("expert_used_count", "num_experts_per_tok"));
  // Layers for multi-token prediction are counted, and stand behind the others.
  SY_ASSIGN_OR_RETURN(const int blocks, t.Int("block_count", 1, model::kMaxLayers));
  SY_ASSIGN_OR_RETURN(const int predicting, t.Int("nextn_predict_layers", 0, blocks - 1, 0));
  t.config()["num_hidden_layers"] = blocks - predicting;
  t.config()["num_nextn_predict_layers"] = predicting;
  const json* tokens = t.reader().Field("tokenizer.ggml.tokens");
  if (t.Has("vocab_size")) {
    SY_RETURN_IF_ERROR(t.Copy("vocab_size", "vocab_size"));
  } else if (tokens != nullptr && tokens->is_array()) {
    t.config()["vocab_size"] = tokens->size();
  } else {
    return InvalidArgument("{}: neither {} nor tokenizer.ggml.tokens is there", t.reader().path(),
                           t.Key("vocab_size"));
  }
  t.config()["tie_word_embeddings"] = !t.HasTensor("output.weight");
  // What most of the weights are; each tensor has its own dtype.
  SY_ASSIGN_OR_RETURN(const int type, t.reader().Int("general.file_type", 0, 1 << 20, 32));
  t.config()["dtype"] = type == 0 ? "float32" : type == 1 ? "float16" : "bfloat16";
  return absl::OkStatus();
}

absl::Status TranslateGqa(Translation& t) {
  SY_RETURN_IF_ERROR(t.CopyIfThere("attention.head_count_kv", "num_key_value_heads"));
  SY_RETURN_IF_ERROR(t.CopyIfThere("rope.dimension_count", "head_dim"));
  SY_RETURN_IF_ERROR(t.CopyIfThere("attention.key_length", "head_dim"));
  const json head_dim = t.config().value("head_dim", json());
  for (std::string_view name : {"attention.value_length", "rope.dimension_count"}) {
    const json* value = t.Field(name);
    if (value == nullptr || head_dim.is_null() || *value == head_dim) continue;
    return t.reader().Unsupported(
        t.Key(name), value->dump(),
        fmt::format("{}, as {}", head_dim.dump(), t.Key("attention.key_length")));
  }
  return absl::OkStatus();
}

// In llama.cpp the stored factor of DeepSeek's YaRN is a tenth of mscale_all_dim, and mscale is the
// same.
absl::Status TranslateYarn(Translation& t, json& rope) {
  SY_ASSIGN_OR_RETURN(rope["original_max_position_embeddings"],
                      t.Double("rope.scaling.original_context_length", 1, 1e12));
  const std::pair<const char*, const char*> names[] = {
      {"rope.scaling.yarn_beta_fast", "beta_fast"},
      {"rope.scaling.yarn_beta_slow", "beta_slow"},
      {"rope.scaling.yarn_attn_factor", "attention_factor"}};
  for (const auto& [name, field] : names) {
    if (const json* value = t.Field(name)) rope[field] = *value;
  }
  SY_RETURN_IF_ERROR(t.Require("rope.scaling.yarn_ext_factor", 1));
  if (t.Has("rope.scaling.yarn_log_multiplier")) {
    SY_ASSIGN_OR_RETURN(const double tenth, t.Double("rope.scaling.yarn_log_multiplier", 0, 1e5));
    rope["mscale"] = tenth * 10;
    rope["mscale_all_dim"] = tenth * 10;
  }
  return absl::OkStatus();
}

absl::Status TranslateRope(Translation& t) {
  SY_ASSIGN_OR_RETURN(const double theta, t.Double("rope.freq_base", 0, 1e30, 10000.0));
  json rope = {{"rope_theta", theta}, {"rope_type", "default"}};
  SY_RETURN_IF_ERROR(t.Require("rope.scaling.attn_factor", 1));
  SY_RETURN_IF_ERROR(t.Require("rope.scaling.alpha", 0));
  SY_ASSIGN_OR_RETURN(const double old, t.Double("rope.scale_linear", 0, 1e30, 0));
  SY_ASSIGN_OR_RETURN(const double factor, t.Double("rope.scaling.factor", 0, 1e30, old));
  const std::string key = t.Key("rope.scaling.type");
  SY_ASSIGN_OR_RETURN(const std::string type, t.reader().String({key}, "linear"));
  if (type == "yarn") {
    rope["rope_type"] = type;
    SY_RETURN_IF_ERROR(TranslateYarn(t, rope));
  } else if (type == "linear" && factor != 0 && factor != 1) {
    rope["rope_type"] = type;
  } else if (type != "linear" && type != "none") {
    return t.reader().Unsupported(key, fmt::format("\"{}\"", type), "none, linear, yarn");
  }
  if (rope["rope_type"] != "default") rope["factor"] = factor;
  t.config()["rope_parameters"] = std::move(rope);
  return absl::OkStatus();
}

// Llama.cpp's numbers of gating functions.
constexpr int kGateSoftmax = 1;
constexpr int kGateSigmoid = 2;

// DeepSeek-V2 and V3 share an architecture in GGUF; the gate tells them apart.
absl::Status TranslateDeepseekGate(Translation& t) {
  json& config = t.config();
  SY_ASSIGN_OR_RETURN(const int gating, t.Int("expert_gating_func", 0, 1 << 20, kGateSoftmax));
  const bool sigmoid = gating == kGateSigmoid;
  if (gating > kGateSigmoid) {
    return t.reader().Unsupported(t.Key("expert_gating_func"), fmt::format("{}", gating),
                                  "1 (softmax), 2 (sigmoid)");
  }
  config["architectures"] =
      json::array({sigmoid ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM"});
  config["scoring_func"] = sigmoid ? "sigmoid" : "softmax";
  config["norm_topk_prob"] = false;
  config["routed_scaling_factor"] = 1.0;
  SY_RETURN_IF_ERROR(t.CopyIfThere("expert_weights_norm", "norm_topk_prob"));
  SY_ASSIGN_OR_RETURN(const double scale, t.Double("expert_weights_scale", -1e6, 1e6, 0.0));
  if (scale != 0) config["routed_scaling_factor"] = scale;  // 0 means none
  SY_ASSIGN_OR_RETURN(const int groups, t.Int("expert_group_count", 0, model::kMaxExperts, 0));
  if (groups > 1) {
    config["n_group"] = groups;
    SY_RETURN_IF_ERROR(t.Copy("expert_group_used_count", "topk_group"));
  }
  config["topk_method"] = sigmoid ? "noaux_tc" : groups > 1 ? "group_limited_greedy" : "greedy";
  return absl::OkStatus();
}

absl::Status TranslateDeepseek2(Translation& t, WeightForm& form) {
  json& config = t.config();
  SY_RETURN_IF_ERROR(TranslateDeepseekGate(t));
  SY_RETURN_IF_ERROR(t.Copy("expert_count", "n_routed_experts"));
  SY_RETURN_IF_ERROR(t.Copy("feed_forward_length", "intermediate_size"));
  SY_RETURN_IF_ERROR(t.Copy("expert_feed_forward_length", "moe_intermediate_size"));
  SY_RETURN_IF_ERROR(t.CopyIfThere("expert_shared_count", "n_shared_experts"));
  config["first_k_dense_replace"] = 0;
  SY_RETURN_IF_ERROR(t.CopyIfThere("leading_dense_block_count", "first_k_dense_replace"));
  SY_RETURN_IF_ERROR(t.CopyIfThere("attention.q_lora_rank", "q_lora_rank"));
  SY_RETURN_IF_ERROR(t.Copy("attention.kv_lora_rank", "kv_lora_rank"));
  SY_RETURN_IF_ERROR(t.Copy("rope.dimension_count", "qk_rope_head_dim"));
  SY_RETURN_IF_ERROR(t.Require("attention.temperature_scale", 0));
  // Files with kv_b_proj in two halves have lengths of what the cache keeps, and the heads' own
  // under other keys.
  form.split_kv_b = t.Has("attention.key_length_mla");
  const std::string_view of = form.split_kv_b ? "_mla" : "";
  SY_RETURN_IF_ERROR(t.Copy(fmt::format("attention.value_length{}", of), "v_head_dim"));
  SY_ASSIGN_OR_RETURN(const int rope, t.Int("rope.dimension_count", 2, model::kMaxHeadDim));
  SY_ASSIGN_OR_RETURN(const int key, t.Int(fmt::format("attention.key_length{}", of), rope + 1,
                                           rope + model::kMaxHeadDim));
  config["qk_nope_head_dim"] = key - rope;
  return absl::OkStatus();
}

absl::Status TranslateQwen3Moe(Translation& t, WeightForm&) {
  SY_RETURN_IF_ERROR(TranslateGqa(t));
  t.config()["architectures"] = json::array({"Qwen3MoeForCausalLM"});
  t.config()["norm_topk_prob"] = true;
  SY_RETURN_IF_ERROR(t.Copy("expert_count", "num_experts"));
  SY_RETURN_IF_ERROR(t.Copy("expert_feed_forward_length", "moe_intermediate_size"));
  return t.Copy("feed_forward_length", "intermediate_size");
}

absl::Status TranslateOlmoe(Translation& t, WeightForm&) {
  SY_RETURN_IF_ERROR(TranslateGqa(t));
  t.config()["architectures"] = json::array({"OlmoeForCausalLM"});
  SY_RETURN_IF_ERROR(t.CopyIfThere("attention.clamp_kqv", "clip_qkv"));
  SY_RETURN_IF_ERROR(t.Copy("expert_count", "num_experts"));
  return t.Copy("feed_forward_length", "intermediate_size");
}

absl::Status TranslateMixtral(Translation& t, WeightForm& form) {
  SY_ASSIGN_OR_RETURN(const int experts, t.Int("expert_count", 0, model::kMaxExperts, 0));
  if (experts == 0) {
    return t.reader().Unsupported("general.architecture", "llama without experts",
                                  "llama with experts (Mixtral)");
  }
  SY_RETURN_IF_ERROR(TranslateGqa(t));
  t.config()["architectures"] = json::array({"MixtralForCausalLM"});
  t.config()["num_local_experts"] = experts;
  form.interleaved_rope = true;
  SY_RETURN_IF_ERROR(t.CopyIfThere("attention.sliding_window", "sliding_window"));
  return t.Copy("feed_forward_length", "intermediate_size");
}

absl::Status TranslateGptOss(Translation& t, WeightForm& form) {
  SY_RETURN_IF_ERROR(TranslateGqa(t));
  t.config()["architectures"] = json::array({"GptOssForCausalLM"});
  t.config()["rope_parameters"]["truncate"] = false;
  form.apart_experts = true;
  SY_RETURN_IF_ERROR(t.Copy("expert_count", "num_local_experts"));
  SY_RETURN_IF_ERROR(t.Copy("expert_feed_forward_length", "intermediate_size"));
  return t.Copy("attention.sliding_window", "sliding_window");
}

struct Architecture {
  std::string_view name;
  absl::Status (*translate)(Translation&, WeightForm&);
};

constexpr Architecture kArchitectures[] = {{"deepseek2", TranslateDeepseek2},
                                           {"qwen3moe", TranslateQwen3Moe},
                                           {"olmoe", TranslateOlmoe},
                                           {"llama", TranslateMixtral},
                                           {"gpt-oss", TranslateGptOss}};

absl::StatusOr<Architecture> FindArchitecture(const ConfigReader& reader) {
  SY_ASSIGN_OR_RETURN(const std::string type, reader.String({"general.type"}, "model"));
  if (type != "model") {
    return reader.Unsupported("general.type", fmt::format("\"{}\"", type), "model");
  }
  constexpr std::string_view kKey = "general.architecture";
  if (!reader.Has(kKey)) return InvalidArgument("{}: {} is missing", reader.path(), kKey);
  SY_ASSIGN_OR_RETURN(const std::string name, reader.String({kKey}, ""));
  std::string supported;
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == name) return architecture;
    supported += supported.empty() ? "" : ", ";
    supported += architecture.name;
  }
  return reader.Unsupported(kKey, fmt::format("\"{}\"", name), supported);
}

// A GGUF names one end of a text, a model may have several: "end of turn" and what the families'
// generation_config.json lists besides.
absl::Status TranslateTokenIds(Translation& t) {
  const ConfigReader& reader = t.reader();
  json& config = t.config();
  const json* tokens = reader.Field("tokenizer.ggml.tokens");
  const size_t count = tokens != nullptr && tokens->is_array() ? tokens->size() : 0;
  if (const json* bos = reader.Field("tokenizer.ggml.bos_token_id")) config["bos_token_id"] = *bos;
  json ends = json::array();
  const auto add = [&ends](const json& id) {
    if (std::ranges::find(ends, id) == ends.end()) ends.push_back(id);
  };
  for (const char* name : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
    const json* id = reader.Field(fmt::format("tokenizer.ggml.{}", name));
    if (id != nullptr) add(*id);
  }
  for (size_t id = 0; id < count; ++id) {
    const json& token = (*tokens)[id];
    for (std::string_view end : {"<|im_end|>", "<|endoftext|>", "<|return|>", "<|call|>"}) {
      if (token.is_string() && token.get_ref<const std::string&>() == end) add(id);
    }
  }
  if (!ends.empty()) config["eos_token_id"] = std::move(ends);
  return absl::OkStatus();
}

// What a model's makers recommend to sample with.
json Generation(const ConfigReader& reader) {
  const std::pair<const char*, const char*> names[] = {{"temp", "temperature"},
                                                       {"top_k", "top_k"},
                                                       {"top_p", "top_p"},
                                                       {"min_p", "min_p"},
                                                       {"penalty_repeat", "repetition_penalty"}};
  json out;
  for (const auto& [name, field] : names) {
    const json* value = reader.Field(fmt::format("general.sampling.{}", name));
    if (value != nullptr) out[field] = *value;
  }
  return out;
}

}  // namespace

absl::StatusOr<ModelConfig> ConfigFromGguf(const std::vector<gguf::Header>& files) {
  const ConfigReader reader(files[0].metadata, files[0].path);
  SY_ASSIGN_OR_RETURN(const Architecture architecture, FindArchitecture(reader));
  Translation t(files, std::string(architecture.name));
  ModelConfig out;
  SY_RETURN_IF_ERROR(TranslateSizes(t));
  SY_RETURN_IF_ERROR(TranslateRope(t));
  SY_RETURN_IF_ERROR(architecture.translate(t, out.form));
  SY_RETURN_IF_ERROR(TranslateTokenIds(t));
  if (architecture.name != "gpt-oss" && t.HasTensor("blk.0.attn_q.bias")) {
    return Unimplemented(
        "{}: tensor \"blk.0.attn_q.bias\": biases of {}'s attention are not "
        "supported in GGUF",
        reader.path(), architecture.name);
  }
  out.config = std::move(t.config());
  out.generation = Generation(reader);
  return out;
}

}  // namespace switchyard
