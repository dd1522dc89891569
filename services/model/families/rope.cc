// Rope parameters in both spellings, after modeling_rope_utils.py of Hugging Face transformers.
#include <cmath>
#include <nlohmann/json.hpp>

#include "services/base/status.h"
#include "services/model/families/families.h"

namespace switchyard::model {
namespace {

constexpr double kMaxFactor = 1e6;
constexpr double kMaxLength = 1e12;

double Mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// A field in which 0 means the default, as `x or default` does in Python.
absl::StatusOr<double> OrDefault(const ConfigReader& rope, std::string_view name, double fallback) {
  SY_ASSIGN_OR_RETURN(const double value, rope.Double(name, 0, kMaxFactor, fallback));
  return value == 0 ? fallback : value;
}

absl::StatusOr<double> OriginalMaxPosition(const ConfigReader& config, const ConfigReader& rope,
                                           const ModelSpec& spec) {
  constexpr std::string_view kName = "original_max_position_embeddings";
  const ConfigReader& place = config.Has(kName) ? config : rope;  // the outer one has priority
  return place.Double(kName, 1, kMaxLength, spec.max_position);
}

absl::Status ReadYarn(const ConfigReader& config, const ConfigReader& rope, ModelSpec& spec) {
  RopeSpec& out = spec.attention.rope;
  out.scaling = RopeScaling::kYarn;
  SY_ASSIGN_OR_RETURN(out.original_max_position, OriginalMaxPosition(config, rope, spec));
  SY_ASSIGN_OR_RETURN(
      out.factor, rope.Double("factor", 1e-3, kMaxFactor,
                              static_cast<double>(spec.max_position) / out.original_max_position));
  SY_ASSIGN_OR_RETURN(out.beta_fast, OrDefault(rope, "beta_fast", 32));
  SY_ASSIGN_OR_RETURN(out.beta_slow, OrDefault(rope, "beta_slow", 1));
  SY_ASSIGN_OR_RETURN(out.truncate, rope.Bool("truncate", true));
  SY_ASSIGN_OR_RETURN(const double mscale, rope.Double("mscale", 0, kMaxFactor, 0));
  SY_ASSIGN_OR_RETURN(const double all_dim, rope.Double("mscale_all_dim", 0, kMaxFactor, 0));
  const double inferred = mscale != 0 && all_dim != 0
                              ? Mscale(out.factor, mscale) / Mscale(out.factor, all_dim)
                              : Mscale(out.factor, 1);
  SY_ASSIGN_OR_RETURN(out.attention_factor,
                      rope.Double("attention_factor", 1e-6, kMaxFactor, inferred));
  return absl::OkStatus();
}

absl::Status ReadLlama3(const ConfigReader& config, const ConfigReader& rope, ModelSpec& spec) {
  RopeSpec& out = spec.attention.rope;
  out.scaling = RopeScaling::kLlama3;
  SY_ASSIGN_OR_RETURN(out.factor, rope.Double("factor", 1e-3, kMaxFactor));
  SY_ASSIGN_OR_RETURN(out.original_max_position, OriginalMaxPosition(config, rope, spec));
  SY_ASSIGN_OR_RETURN(out.low_freq_factor, rope.Double("low_freq_factor", 1e-6, kMaxFactor));
  SY_ASSIGN_OR_RETURN(out.high_freq_factor, rope.Double("high_freq_factor", 1e-6, kMaxFactor));
  if (out.high_freq_factor <= out.low_freq_factor) {
    return InvalidArgument("{}: high_freq_factor is {}, expected more than low_freq_factor ({})",
                           rope.path(), out.high_freq_factor, out.low_freq_factor);
  }
  return absl::OkStatus();
}

absl::Status ReadScaling(const ConfigReader& config, const ConfigReader& rope, ModelSpec& spec) {
  RopeSpec& out = spec.attention.rope;
  SY_ASSIGN_OR_RETURN(const std::string type, rope.String({"rope_type", "type"}, "default"));
  if (type == "default") {
    out.scaling = RopeScaling::kNone;
  } else if (type == "linear") {
    out.scaling = RopeScaling::kLinear;
    SY_ASSIGN_OR_RETURN(out.factor, rope.Double("factor", 1e-3, kMaxFactor));
  } else if (type == "yarn") {
    SY_RETURN_IF_ERROR(ReadYarn(config, rope, spec));
  } else if (type == "llama3") {
    SY_RETURN_IF_ERROR(ReadLlama3(config, rope, spec));
  } else {
    return rope.Unsupported(rope.Has("rope_type") ? "rope_type" : "type",
                            fmt::format("\"{}\"", type), "default, linear, yarn, llama3");
  }
  if (spec.attention.kind == AttentionKind::kMla && out.scaling != RopeScaling::kNone) {
    // Apart from cos and sin DeepSeek scales the softmax, for every scaling that names it.
    SY_ASSIGN_OR_RETURN(const double all_dim, rope.Double("mscale_all_dim", 0, kMaxFactor, 0));
    const double mscale = all_dim != 0 ? Mscale(out.factor, all_dim) : 1.0;
    const int width = spec.attention.qk_nope_head_dim + spec.attention.qk_rope_head_dim;
    spec.attention.softmax_scale =
        static_cast<float>(mscale * mscale / std::sqrt(static_cast<double>(width)));
  }
  return absl::OkStatus();
}

// Newer configs may nest one set of parameters a layer type.
absl::Status RefuseNested(const ConfigReader& rope) {
  for (std::string_view nested : {"full_attention", "sliding_attention"}) {
    if (rope.Has(nested)) {
      return rope.Unsupported(nested, "a set of parameters of its own",
                              "one set of rope parameters for all layers");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadRope(const ConfigReader& config, double default_theta, ModelSpec& spec) {
  RopeSpec& out = spec.attention.rope;
  if (out.dim % 2 != 0) {
    return InvalidArgument("{}: a head rotates {} dimensions, expected an even number",
                           config.path(), out.dim);
  }
  // An empty rope_scaling counts as absent.
  const nlohmann::json* old = config.Field("rope_scaling");
  const bool old_spelling = old != nullptr && !(old->is_object() && old->empty());
  SY_ASSIGN_OR_RETURN(const auto rope,
                      config.Object(old_spelling ? "rope_scaling" : "rope_parameters"));
  constexpr double kMinTheta = 1.001;  // YaRN divides by its logarithm
  constexpr double kMaxTheta = 1e15;
  SY_ASSIGN_OR_RETURN(out.theta, config.Double("rope_theta", kMinTheta, kMaxTheta, default_theta));
  if (rope.has_value()) {
    SY_RETURN_IF_ERROR(RefuseNested(*rope));
    SY_ASSIGN_OR_RETURN(out.theta, rope->Double("rope_theta", kMinTheta, kMaxTheta, out.theta));
    SY_RETURN_IF_ERROR(ReadScaling(config, *rope, spec));
  }
  for (const ConfigReader* place : {&config, rope.has_value() ? &*rope : &config}) {
    SY_ASSIGN_OR_RETURN(const double part, place->Double("partial_rotary_factor", 0, 1e3, 1));
    if (part != 1) return place->Unsupported("partial_rotary_factor", fmt::format("{}", part), "1");
  }
  return absl::OkStatus();
}

}  // namespace switchyard::model
