#include "services/model/spec_from_hf.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "services/base/status.h"
#include "services/model/config_reader.h"
#include "services/model/families/families.h"
#include "services/model/model_config.h"
#include "services/quantization/config.h"

namespace switchyard {
namespace {

using model::ConfigReader;

struct FamilyEntry {
  std::string_view architecture;
  Family family;
  std::string_view model_type;
  absl::Status (*read)(const ConfigReader&, ModelSpec&);
};

constexpr FamilyEntry kFamilies[] = {
    {"DeepseekV2ForCausalLM", Family::kDeepseekV2, "deepseek_v2", model::ReadDeepseekV2},
    {"DeepseekV3ForCausalLM", Family::kDeepseekV3, "deepseek_v3", model::ReadDeepseekV3},
    {"Qwen3MoeForCausalLM", Family::kQwen3Moe, "qwen3_moe", model::ReadQwen3Moe},
    {"MixtralForCausalLM", Family::kMixtral, "mixtral", model::ReadMixtral},
    {"OlmoeForCausalLM", Family::kOlmoe, "olmoe", model::ReadOlmoe},
    {"GptOssForCausalLM", Family::kGptOss, "gpt_oss", model::ReadGptOss},
};

absl::StatusOr<FamilyEntry> FindFamily(const ConfigReader& config) {
  const nlohmann::json* field = config.Field("architectures");
  if (field == nullptr) return InvalidArgument("{}: architectures is missing", config.path());
  if (!field->is_array() || field->size() != 1 || !(*field)[0].is_string()) {
    return config.Wrong("architectures", *field, "a list of one name");
  }
  const std::string name = (*field)[0].get<std::string>();
  std::string supported;
  for (const FamilyEntry& entry : kFamilies) {
    if (entry.architecture == name) return entry;
    supported += supported.empty() ? "" : ", ";
    supported += entry.architecture;
  }
  return config.Unsupported("architectures", fmt::format("\"{}\"", name), supported);
}

absl::Status ReadDType(const ConfigReader& config, ModelSpec& spec) {
  SY_ASSIGN_OR_RETURN(const std::string name, config.String({"dtype", "torch_dtype"}, "bfloat16"));
  for (DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    if (Name(dtype) != name) continue;
    spec.weight_dtype = dtype;
    return absl::OkStatus();
  }
  return config.Unsupported(config.Has("dtype") ? "dtype" : "torch_dtype",
                            fmt::format("\"{}\"", name), "\"bfloat16\", \"float16\", \"float32\"");
}

// What all families have.
absl::Status ReadCommon(const ConfigReader& config, ModelSpec& spec) {
  SY_RETURN_IF_ERROR(ReadDType(config, spec));
  SY_ASSIGN_OR_RETURN(const std::string act, config.String({"hidden_act"}, "silu"));
  if (act != "silu") {
    return config.Unsupported("hidden_act", fmt::format("\"{}\"", act), "\"silu\"");
  }
  SY_ASSIGN_OR_RETURN(spec.hidden, config.Int("hidden_size", 1, model::kMaxHidden));
  SY_ASSIGN_OR_RETURN(spec.vocab, config.Int("vocab_size", 1, model::kMaxVocab));
  SY_ASSIGN_OR_RETURN(const int layers, config.Int("num_hidden_layers", 1, model::kMaxLayers));
  spec.layers.resize(static_cast<size_t>(layers));
  SY_ASSIGN_OR_RETURN(const double eps, config.Double("rms_norm_eps", 1e-30, 1.0));
  spec.norm_eps = static_cast<float>(eps);
  SY_ASSIGN_OR_RETURN(spec.tied_embeddings, config.Bool("tie_word_embeddings", false));
  SY_ASSIGN_OR_RETURN(spec.max_position,
                      config.Int("max_position_embeddings", 1, model::kMaxPosition));
  return absl::OkStatus();
}

// eos_token_id as a number or a list of them; leaves `ids` as it is where the field is absent.
absl::Status ReadEosIds(const ConfigReader& config, int vocab, std::vector<int>& ids) {
  const nlohmann::json* field = config.Field("eos_token_id");
  if (field == nullptr) return absl::OkStatus();
  constexpr size_t kMaxIds = 256;
  const nlohmann::json list = field->is_array() ? *field : nlohmann::json::array({*field});
  if (list.size() > kMaxIds) return config.Wrong("eos_token_id", *field, "at most 256 ids");
  ids.clear();
  for (const nlohmann::json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab)) {
      return config.Wrong("eos_token_id", id, fmt::format("token ids in [0, {}]", vocab - 1));
    }
    ids.push_back(id.get<int>());
  }
  return absl::OkStatus();
}

absl::Status ReadTokenIds(const ConfigReader& config, ModelSpec& spec) {
  SY_ASSIGN_OR_RETURN(spec.bos_id, config.Int("bos_token_id", 0, spec.vocab - 1, spec.bos_id));
  return ReadEosIds(config, spec.vocab, spec.eos_ids);
}

}  // namespace

absl::StatusOr<ModelSpec> SpecFromConfig(const ModelConfig& model) {
  const ConfigReader config(model.config, "config.json");
  SY_ASSIGN_OR_RETURN(const FamilyEntry family, FindFamily(config));
  SY_ASSIGN_OR_RETURN(const QuantizationConfig quantization, ReadQuantization(model.config));
  ModelSpec spec;
  spec.family = family.family;
  spec.architecture = family.architecture;
  spec.model_type = family.model_type;
  SY_RETURN_IF_ERROR(ReadCommon(config, spec));
  SY_RETURN_IF_ERROR(family.read(config, spec));
  if (std::ranges::none_of(spec.layers, &LayerSpec::moe)) {
    return InvalidArgument("config.json: none of the {} layers has experts", spec.num_layers());
  }
  SY_RETURN_IF_ERROR(ReadTokenIds(config, spec));
  if (!model.generation.is_null()) {
    SY_RETURN_IF_ERROR(
        ReadTokenIds(ConfigReader(model.generation, "generation_config.json"), spec));
  }
  if (model.form.interleaved_rope) spec.attention.rope.layout = RopeLayout::kInterleaved;
  if (model.form.apart_experts) spec.experts.stacked = false;
  spec.experts.stacked_out_in = spec.experts.stacked && quantization.method == Quantization::kMxfp4;
  spec.attention.split_kv_b = model.form.split_kv_b;
  return spec;
}

absl::StatusOr<ModelSpec> SpecFromHf(std::string_view config_json,
                                     std::string_view generation_config_json) {
  ModelConfig model;
  SY_ASSIGN_OR_RETURN(model.config, model::ParseObject(config_json, "config.json"));
  if (!generation_config_json.empty()) {
    SY_ASSIGN_OR_RETURN(model.generation,
                        model::ParseObject(generation_config_json, "generation_config.json"));
  }
  return SpecFromConfig(model);
}

absl::StatusOr<ModelSpec> LoadSpec(const std::string& path) {
  SY_ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(path));
  auto spec = SpecFromConfig(config);
  if (spec.ok()) return spec;
  return Annotate(spec.status(),
                  gguf::IsGguf(path) ? path + ": its metadata, read as config.json" : path);
}

}  // namespace switchyard
