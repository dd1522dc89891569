#include "services/tokenizer/hf_steps.h"

#include <limits>
#include <utility>

#include "services/base/status.h"
#include "services/base/utf8.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;

constexpr int kSequenceDepthMax = 8;
constexpr size_t kStepsMax = 64;

// What a byte-level pre-tokenizer cuts by when it uses its own pattern, GPT-2's.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Calls read(step) for the steps of an object that may be a Sequence, in order.
template <typename F>
absl::Status ForEachStep(const Json& json, std::string_view section, std::string_view members,
                         int depth, F read) {
  if (!json.is_object()) return InvalidArgument("tokenizer.json: {} is no object", section);
  if (StringOr(json, "type", "") != "Sequence") return read(json);
  const Json* list = FieldOf(json, members);
  if (list == nullptr || !list->is_array() || list->size() > kStepsMax ||
      depth == kSequenceDepthMax) {
    return InvalidArgument("tokenizer.json: {}: a Sequence needs an array \"{}\" of at most {}",
                           section, members, kStepsMax);
  }
  for (const Json& step : *list) {
    SY_RETURN_IF_ERROR(ForEachStep(step, section, members, depth + 1, read));
  }
  return absl::OkStatus();
}

absl::Status Unsupported(std::string_view section, const Json& json, std::string_view supported) {
  return Unimplemented("tokenizer.json: {}.type \"{}\" is not supported; supported: {}", section,
                       StringOr(json, "type", ""), supported);
}

// {"String": text} or {"Regex": pattern}.
absl::StatusOr<Regex> ReadPattern(const Json& step, std::string_view section) {
  const Json* pattern = FieldOf(step, "pattern");
  if (pattern != nullptr && pattern->is_object()) {
    if (const Json* text = FieldOf(*pattern, "String"); text != nullptr && text->is_string()) {
      return Regex::Literal(text->get<std::string>());
    }
    if (const Json* regex = FieldOf(*pattern, "Regex"); regex != nullptr && regex->is_string()) {
      auto compiled = Regex::Compile(regex->get<std::string>());
      if (!compiled.ok()) {
        return Annotate(compiled.status(), fmt::format("tokenizer.json: {}", section));
      }
      return compiled;
    }
  }
  return InvalidArgument("tokenizer.json: {}: pattern needs a String or a Regex", section);
}

absl::Status ReadNormalizeStep(const Json& json, std::vector<NormalizeStep>* steps) {
  const std::string type = StringOr(json, "type", "");
  if (type == "NFC") {
    steps->emplace_back(UnicodeStep{UnicodeForm::kNfc});
  } else if (type == "NFD") {
    steps->emplace_back(UnicodeStep{UnicodeForm::kNfd});
  } else if (type == "NFKC") {
    steps->emplace_back(UnicodeStep{UnicodeForm::kNfkc});
  } else if (type == "NFKD") {
    steps->emplace_back(UnicodeStep{UnicodeForm::kNfkd});
  } else if (type == "Prepend") {
    steps->emplace_back(PrependStep{StringOr(json, "prepend", "")});
  } else if (type == "Replace") {
    SY_ASSIGN_OR_RETURN(Regex pattern, ReadPattern(json, "normalizer"));
    steps->emplace_back(ReplaceStep{std::move(pattern), StringOr(json, "content", "")});
  } else {
    return Unsupported("normalizer", json, "Sequence, NFC, NFD, NFKC, NFKD, Prepend, Replace");
  }
  return absl::OkStatus();
}

absl::StatusOr<SplitBehavior> BehaviorOf(const Json& json) {
  const std::string name = StringOr(json, "behavior", "");
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return InvalidArgument("tokenizer.json: pre_tokenizer: unknown behavior \"{}\"", name);
}

absl::Status AddSplit(std::string_view pattern, std::vector<PreTokenizeStep>* steps) {
  SY_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(pattern));
  steps->emplace_back(SplitStep{std::move(regex), SplitBehavior::kIsolated, false});
  return absl::OkStatus();
}

// The character that spells a space.
absl::StatusOr<std::string> ReplacementOf(const Json& json, std::string_view section) {
  const std::string text = StringOr(json, "replacement", "");
  if (text.empty() || FirstUtf8(text).size != text.size()) {
    return InvalidArgument("tokenizer.json: {}: Metaspace needs one character as replacement",
                           section);
  }
  return text;
}

absl::StatusOr<MetaspaceStep::Prepend> PrependOf(const Json& json, std::string_view section) {
  const std::string scheme =
      StringOr(json, "prepend_scheme", BoolOr(json, "add_prefix_space", true) ? "always" : "never");
  if (scheme == "always") return MetaspaceStep::Prepend::kAlways;
  if (scheme == "first") return MetaspaceStep::Prepend::kFirst;
  if (scheme == "never") return MetaspaceStep::Prepend::kNever;
  return InvalidArgument("tokenizer.json: {}: unknown prepend_scheme \"{}\"", section, scheme);
}

absl::Status ReadPreTokenizeStep(const Json& json, PreTokenizerSpec* spec) {
  const std::string type = StringOr(json, "type", "");
  if (spec->byte_level) {
    return Unimplemented("tokenizer.json: pre_tokenizer: {} behind ByteLevel is not supported",
                         type);
  }
  if (type == "Split") {
    SY_ASSIGN_OR_RETURN(Regex pattern, ReadPattern(json, "pre_tokenizer"));
    SY_ASSIGN_OR_RETURN(const SplitBehavior behavior, BehaviorOf(json));
    spec->steps.emplace_back(
        SplitStep{std::move(pattern), behavior, BoolOr(json, "invert", false)});
  } else if (type == "Digits") {
    return AddSplit(BoolOr(json, "individual_digits", false) ? "\\p{N}" : "\\p{N}+", &spec->steps);
  } else if (type == "ByteLevel") {
    spec->byte_level = true;
    if (BoolOr(json, "add_prefix_space", true)) spec->steps.emplace_back(PrefixSpaceStep{});
    if (BoolOr(json, "use_regex", true)) return AddSplit(kGpt2Pattern, &spec->steps);
  } else if (type == "Metaspace") {
    SY_ASSIGN_OR_RETURN(std::string replacement, ReplacementOf(json, "pre_tokenizer"));
    SY_ASSIGN_OR_RETURN(const auto prepend, PrependOf(json, "pre_tokenizer"));
    SY_ASSIGN_OR_RETURN(Regex pattern, Regex::Literal(replacement));
    spec->steps.emplace_back(MetaspaceStep{std::move(replacement), prepend,
                                           BoolOr(json, "split", true), std::move(pattern)});
  } else {
    return Unsupported("pre_tokenizer", json, "Sequence, Split, Digits, ByteLevel, Metaspace");
  }
  return absl::OkStatus();
}

// Decoder steps have to come in this order, each at most once but Replace.
enum class DecodeStage { kStart, kReplace, kByteFallback, kMetaspace, kFuse, kStrip, kByteLevel };

absl::StatusOr<DecodeStage> StageOf(const Json& json) {
  const std::string type = StringOr(json, "type", "");
  if (type == "Replace") return DecodeStage::kReplace;
  if (type == "ByteFallback") return DecodeStage::kByteFallback;
  if (type == "Metaspace") return DecodeStage::kMetaspace;
  if (type == "Fuse") return DecodeStage::kFuse;
  if (type == "Strip") return DecodeStage::kStrip;
  if (type == "ByteLevel") return DecodeStage::kByteLevel;
  return Unsupported("decoder", json,
                     "Sequence, ByteLevel, Replace, ByteFallback, Metaspace, Fuse, Strip");
}

int IntOr(const Json& json, std::string_view key, int fallback) {
  const Json* value = FieldOf(json, key);
  if (value == nullptr || !value->is_number_integer()) return fallback;
  const int64_t number = value->get<int64_t>();
  return number >= 0 && number <= std::numeric_limits<int>::max() ? static_cast<int>(number)
                                                                  : fallback;
}

absl::Status ReadStrip(const Json& json, DecoderSpec* spec) {
  spec->strip_left = StringOr(json, "content", "");
  spec->strip_left_count = IntOr(json, "start", 0);
  if (IntOr(json, "stop", 0) != 0 || spec->strip_left.empty() ||
      FirstUtf8(spec->strip_left).size != spec->strip_left.size()) {
    return Unimplemented(
        "tokenizer.json: decoder: Strip is supported at the start, of one "
        "character");
  }
  return absl::OkStatus();
}

absl::Status ReadDecodeStep(const Json& json, DecoderSpec* spec, DecodeStage* stage) {
  SY_ASSIGN_OR_RETURN(const DecodeStage next, StageOf(json));
  const bool in_order = next == DecodeStage::kByteLevel ? *stage == DecodeStage::kStart
                        : next == DecodeStage::kReplace ? *stage <= DecodeStage::kReplace
                        : next == DecodeStage::kStrip   ? *stage == DecodeStage::kFuse
                                                        : *stage < next;
  if (!in_order) {
    return Unimplemented("tokenizer.json: decoder: {} is not supported at its place",
                         StringOr(json, "type", ""));
  }
  *stage = next;
  if (next == DecodeStage::kByteLevel) {
    spec->byte_level = true;
  } else if (next == DecodeStage::kByteFallback) {
    spec->byte_fallback = true;
  } else if (next == DecodeStage::kMetaspace) {
    SY_ASSIGN_OR_RETURN(std::string replacement, ReplacementOf(json, "decoder"));
    SY_ASSIGN_OR_RETURN(const auto prepend, PrependOf(json, "decoder"));
    if (prepend != MetaspaceStep::Prepend::kNever) spec->dropped_in_first = replacement;
    spec->replacements.emplace_back(std::move(replacement), " ");
  } else if (next == DecodeStage::kReplace) {
    const Json* pattern = FieldOf(json, "pattern");
    std::string text = pattern == nullptr ? "" : StringOr(*pattern, "String", "");
    if (text.empty()) return Unimplemented("tokenizer.json: decoder: Replace needs a String");
    spec->replacements.emplace_back(std::move(text), StringOr(json, "content", ""));
  } else if (next == DecodeStage::kStrip) {
    return ReadStrip(json, spec);
  }
  return absl::OkStatus();
}

}  // namespace

const Json* FieldOf(const Json& object, std::string_view key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(std::string(key));
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string StringOr(const Json& object, std::string_view key, std::string_view fallback) {
  const Json* value = FieldOf(object, key);
  return value != nullptr && value->is_string() ? value->get<std::string>() : std::string(fallback);
}

bool BoolOr(const Json& object, std::string_view key, bool fallback) {
  const Json* value = FieldOf(object, key);
  return value != nullptr && value->is_boolean() ? value->get<bool>() : fallback;
}

absl::StatusOr<Normalizer> ReadNormalizer(const Json* json) {
  std::vector<NormalizeStep> steps;
  if (json != nullptr) {
    SY_RETURN_IF_ERROR(ForEachStep(*json, "normalizer", "normalizers", 0, [&](const Json& step) {
      return ReadNormalizeStep(step, &steps);
    }));
  }
  return Normalizer(std::move(steps));
}

absl::StatusOr<PreTokenizerSpec> ReadPreTokenizer(const Json* json) {
  PreTokenizerSpec spec;
  if (json != nullptr) {
    SY_RETURN_IF_ERROR(
        ForEachStep(*json, "pre_tokenizer", "pretokenizers", 0,
                    [&](const Json& step) { return ReadPreTokenizeStep(step, &spec); }));
  }
  return spec;
}

absl::StatusOr<DecoderSpec> ReadDecoder(const Json* json) {
  if (json == nullptr) return Unimplemented("tokenizer.json: decoder is missing");
  DecoderSpec spec;
  DecodeStage stage = DecodeStage::kStart;
  SY_RETURN_IF_ERROR(ForEachStep(*json, "decoder", "decoders", 0, [&](const Json& step) {
    return ReadDecodeStep(step, &spec, &stage);
  }));
  return spec;
}

}  // namespace switchyard
