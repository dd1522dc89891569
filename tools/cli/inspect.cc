#include "tools/cli/inspect.h"

#include <fmt/format.h>

#include <numeric>
#include <utility>

#include "services/base/status.h"
#include "services/checkpoint/content_digest.h"
#include "services/checkpoint/tensor_source.h"
#include "services/model/fingerprint.h"
#include "services/model/memory_plan.h"
#include "services/model/spec_from_hf.h"
#include "services/tokenizer/tokenizer.h"

namespace switchyard::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string_view RopeScalingName(RopeScaling scaling) {
  switch (scaling) {
    case RopeScaling::kNone:
      return "none";
    case RopeScaling::kLinear:
      return "linear";
    case RopeScaling::kYarn:
      return "yarn";
    case RopeScaling::kLlama3:
      return "llama3";
  }
  return "none";
}

Json AttentionJson(const ModelSpec& spec) {
  const AttentionSpec& a = spec.attention;
  Json out = {{"kind", a.kind == AttentionKind::kMla ? "MLA" : "GQA"}, {"heads", a.heads}};
  if (a.kind == AttentionKind::kMla) {
    out["q_lora_rank"] = a.q_lora_rank;
    out["kv_lora_rank"] = a.kv_lora_rank;
    out["qk_nope_head_dim"] = a.qk_nope_head_dim;
    out["qk_rope_head_dim"] = a.qk_rope_head_dim;
    out["v_head_dim"] = a.v_head_dim;
  } else {
    out["kv_heads"] = a.kv_heads;
    out["head_dim"] = a.head_dim;
  }
  out["rope_theta"] = a.rope.theta;
  out["rope_scaling"] = RopeScalingName(a.rope.scaling);
  int windowed = 0;
  for (const LayerSpec& layer : spec.layers) windowed += layer.window > 0 ? 1 : 0;
  out["layers_with_window"] = windowed;
  return out;
}

Json ExpertsJson(const ModelSpec& spec) {
  int moe = 0;
  for (const LayerSpec& layer : spec.layers) moe += layer.moe ? 1 : 0;
  return {{"layers", moe},
          {"count", spec.experts.count},
          {"top_k", spec.gate.top_k},
          {"groups", spec.gate.groups},
          {"groups_chosen", spec.gate.topk_groups},
          {"width", spec.experts.intermediate},
          {"shared_width", spec.experts.shared_intermediate}};
}

Json BytesJson(const WeightBytes& bytes) {
  Json out = Json::object();
  for (const auto& [dtype, count] : bytes.by_dtype) out[std::string(Name(dtype))] = count;
  out["total"] = bytes.total();
  return out;
}

Json MemoryJson(const ModelSpec& spec, const checkpoint::TensorSource& source) {
  const StoredTensorOf stored = [&](std::string_view name) {
    const checkpoint::TensorInfo* info = source.Find(name);
    return info != nullptr ? StoredTensor(info->dtype, info->scale_bytes)
                           : StoredTensor(spec.weight_dtype);
  };
  std::vector<int> all(spec.experts.count), one = {0};
  std::iota(all.begin(), all.end(), 0);
  Json out = {{"backbone", BytesJson(BackboneBytes(spec, stored))},
              {"experts", BytesJson(ExpertBytes(spec, all, stored))},
              {"one_expert_in_all_layers", ExpertBytes(spec, one, stored).total()}};
  constexpr std::pair<const char*, DType> kKinds[] = {{"bfloat16", DType::kBF16},
                                                      {"float32", DType::kF32},
                                                      {"int8", DType::kI8},
                                                      {"fp8", DType::kF8E4M3}};
  for (const auto& [name, dtype] : kKinds) {
    out[fmt::format("kv_per_token_{}", name)] = KvBytesPerToken(spec, dtype);
    out[fmt::format("kv_per_token_behind_windows_{}", name)] = KvBytesPerKeptToken(spec, dtype);
  }
  return out;
}

Json TokenizerJson(const std::string& directory) {
  const auto tokenizer = Tokenizer::Load(directory);
  if (!tokenizer.ok()) return {{"error", std::string(ToStd(tokenizer.status().message()))}};
  Json templates = Json::array();
  for (const NamedTemplate& t : (*tokenizer)->chat_templates()) templates.push_back(t.name);
  return {{"vocabulary", (*tokenizer)->vocab_size()},
          {"bos", (*tokenizer)->bos_token()},
          {"eos", (*tokenizer)->eos_token()},
          {"adds_bos", (*tokenizer)->add_bos_token()},
          {"reasoning", (*tokenizer)->IdOf("</think>").has_value()},
          {"chat_templates", templates}};
}

std::string Bytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) value /= 1024, ++unit;
  return fmt::format("{:.{}f} {}", value, unit == 0 ? 0 : 2, kUnits[unit]);
}

std::string Count(uint64_t count) {
  if (count >= 1'000'000'000) return fmt::format("{:.2f} B", count / 1e9);
  if (count >= 1'000'000) return fmt::format("{:.2f} M", count / 1e6);
  return fmt::format("{}", count);
}

std::string ByDType(const Json& bytes) {
  std::string out = Bytes(bytes["total"].get<uint64_t>());
  std::string parts;
  for (const auto& [name, value] : bytes.items()) {
    if (name == "total") continue;
    parts += (parts.empty() ? "" : ", ") + name + " " + Bytes(value.get<uint64_t>());
  }
  return out + " (" + parts + ")";
}

}  // namespace

absl::StatusOr<Json> Inspect(const std::string& directory) {
  SY_ASSIGN_OR_RETURN(const ModelSpec spec, LoadSpec(directory));
  SY_ASSIGN_OR_RETURN(const auto source, checkpoint::OpenCheckpoint(directory));
  SY_ASSIGN_OR_RETURN(const std::string digest, checkpoint::ContentDigest(*source));
  const ParameterCount parameters = CountParameters(spec);
  Json report = {{"directory", directory},
                 {"architecture", spec.architecture},
                 {"fingerprint", ModelFingerprint(spec, digest)},
                 {"layers", spec.num_layers()},
                 {"skipped_layers", spec.skipped_layers},
                 {"hidden", spec.hidden},
                 {"vocabulary", spec.vocab},
                 {"tied_embeddings", spec.tied_embeddings},
                 {"max_positions", spec.max_position},
                 {"attention", AttentionJson(spec)},
                 {"experts", ExpertsJson(spec)},
                 {"parameters", {{"total", parameters.total}, {"active", parameters.active}}},
                 {"memory", MemoryJson(spec, *source)},
                 {"tokenizer", TokenizerJson(directory)}};
  report["files"] = source->files();
  report["tensors"] = source->tensors().size();
  return report;
}

std::string InspectText(const Json& r) {
  std::string out;
  const auto line = [&out](std::string_view name, const std::string& value) {
    out += fmt::format("{:<14} {}\n", name, value);
  };
  line("model", r["directory"].get<std::string>());
  line("architecture", r["architecture"].get<std::string>());
  line("fingerprint", r["fingerprint"].get<std::string>());
  line("parameters",
       fmt::format("{} total, {} active a token", Count(r["parameters"]["total"].get<uint64_t>()),
                   Count(r["parameters"]["active"].get<uint64_t>())));
  line("shape",
       fmt::format("{} layers, hidden {}, vocabulary {}, {} positions{}", r["layers"].dump(),
                   r["hidden"].dump(), r["vocabulary"].dump(), r["max_positions"].dump(),
                   r["tied_embeddings"].get<bool>() ? ", tied embeddings" : ""));
  if (r["skipped_layers"].get<int>() > 0) {
    line("", fmt::format("{} more layers for multi-token prediction are skipped",
                         r["skipped_layers"].dump()));
  }
  std::string attention;
  for (const auto& [name, value] : r["attention"].items()) {
    attention += (attention.empty() ? "" : ", ") +
                 (name == "kind"
                      ? value.get<std::string>()
                      : name + " " + (value.is_string() ? value.get<std::string>() : value.dump()));
  }
  line("attention", attention);
  const Json& experts = r["experts"];
  line("experts",
       fmt::format("{} of width {} in {} layers, top {}{}{}", experts["count"].dump(),
                   experts["width"].dump(), experts["layers"].dump(), experts["top_k"].dump(),
                   experts["groups"].get<int>() > 1
                       ? fmt::format(" from {} of {} groups", experts["groups_chosen"].dump(),
                                     experts["groups"].dump())
                       : "",
                   experts["shared_width"].get<int>() > 0
                       ? fmt::format(", shared width {}", experts["shared_width"].dump())
                       : ""));
  const Json& memory = r["memory"];
  line("router", ByDType(memory["backbone"]));
  line("workers", ByDType(memory["experts"]) + ", one expert in all layers " +
                      Bytes(memory["one_expert_in_all_layers"].get<uint64_t>()));
  const auto kv = [&memory](const std::string& what) {
    return fmt::format("{} in bfloat16, {} in float32, {} in int8 and fp8",
                       Bytes(memory[what + "_bfloat16"].get<uint64_t>()),
                       Bytes(memory[what + "_float32"].get<uint64_t>()),
                       Bytes(memory[what + "_int8"].get<uint64_t>()));
  };
  line("KV a token", kv("kv_per_token"));
  if (r["attention"]["layers_with_window"].get<int>() > 0) {
    line("  once behind", "the sliding windows: " + kv("kv_per_token_behind_windows"));
  }
  const Json& tokenizer = r["tokenizer"];
  if (tokenizer.contains("error")) {
    line("tokenizer", tokenizer["error"].get<std::string>());
  } else {
    line("tokenizer", fmt::format("{} ids, bos {}, eos {}{}{}", tokenizer["vocabulary"].dump(),
                                  tokenizer["bos"].dump(), tokenizer["eos"].dump(),
                                  tokenizer["adds_bos"].get<bool>() ? ", adds bos" : "",
                                  tokenizer["reasoning"].get<bool>() ? ", thinks" : ""));
    line("templates",
         tokenizer["chat_templates"].empty() ? "none" : tokenizer["chat_templates"].dump());
  }
  line("files", fmt::format("{} with {} tensors", r["files"].size(), r["tensors"].dump()));
  return out;
}

}  // namespace switchyard::cli
