#include "services/tokenizer/gguf_tokenizer.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <unordered_map>

#include "services/base/status.h"
#include "services/base/utf8.h"
#include "services/tokenizer/hf_steps.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;

// tokenizer.ggml.token_type.
enum TokenType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

constexpr std::string_view kSpace = "\u2581";  // SentencePiece's

absl::StatusOr<const Json*> List(const Json& metadata, const std::string& key, size_t size) {
  const Json* list = FieldOf(metadata, key);
  if (list == nullptr) return InvalidArgument("{} is missing", key);
  if (!list->is_array() || list->empty() || (size != 0 && list->size() != size)) {
    return InvalidArgument("{}: a list of {} expected", key,
                           size != 0 ? fmt::format("{} values", size) : "values");
  }
  return list;
}

// The model's vocabulary, and which of its tokens are cut out of a text before it is encoded.
class Vocabulary {
 public:
  absl::Status Read(const Json& metadata) {
    SY_ASSIGN_OR_RETURN(tokens_, List(metadata, "tokenizer.ggml.tokens", 0));
    const std::string key = "tokenizer.ggml.token_type";
    const Json* types = FieldOf(metadata, key);
    if (types != nullptr) {
      SY_ASSIGN_OR_RETURN(types, List(metadata, key, tokens_->size()));
    }
    for (size_t id = 0; id < tokens_->size(); ++id) {
      const Json& token = (*tokens_)[id];
      if (!token.is_string()) return InvalidArgument("tokenizer.ggml.tokens[{}] is no text", id);
      int type = kNormal;
      if (types != nullptr) {
        const Json& value = (*types)[id];
        type = value.is_number_integer() ? value.get<int>() : 0;
        if (type < kNormal || type > kByte) {
          return InvalidArgument("{}[{}] is {}, expected 1 to 6", key, id, value.dump());
        }
      }
      SY_RETURN_IF_ERROR(Add(token.get<std::string>(), id, type));
    }
    return absl::OkStatus();
  }

  // Empty where there is no such token.
  std::string Content(const Json& metadata, const std::string& name) const {
    const Json* id = FieldOf(metadata, "tokenizer.ggml." + name);
    if (id == nullptr || !id->is_number_unsigned() || id->get<uint64_t>() >= tokens_->size()) {
      return "";
    }
    return (*tokens_)[id->get<size_t>()].get<std::string>();
  }

  size_t size() const { return tokens_->size(); }
  Json& vocab() { return vocab_; }
  Json& added() { return added_; }
  const std::string& unknown() const { return unknown_; }
  // Text and id of what merges can make.
  const std::vector<std::pair<std::string, size_t>>& normal() const { return normal_; }

 private:
  absl::Status Add(const std::string& content, size_t id, int type) {
    if (type == kUnused || content.empty()) return absl::OkStatus();
    if (type == kControl || type == kUserDefined || type == kUnknown) {
      added_.push_back({{"id", id},
                        {"content", content},
                        {"special", type != kUserDefined},
                        {"normalized", false}});
    }
    // They are of the vocabulary too, as a merge may make one.
    if (type == kUnknown) unknown_ = content;
    if (type == kNormal) normal_.emplace_back(content, id);
    if (const auto [at, fresh] = vocab_.emplace(content, id); !fresh) {
      return InvalidArgument("tokenizer.ggml.tokens: \"{}\" is token {} and {}", content,
                             at->dump(), id);
    }
    return absl::OkStatus();
  }

  const Json* tokens_ = nullptr;
  Json vocab_ = Json::object();
  Json added_ = Json::array();
  std::string unknown_;
  std::vector<std::pair<std::string, size_t>> normal_;
};

Json SplitBy(const char* pattern) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", pattern}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

absl::StatusOr<Json> ByteLevel(const Json& metadata, const GgufPreTokenizer& pre,
                               Vocabulary& vocabulary) {
  SY_ASSIGN_OR_RETURN(const Json* merges, List(metadata, "tokenizer.ggml.merges", 0));
  Json steps = Json::array();
  for (const char* pattern : pre.splits) steps.push_back(SplitBy(pattern));
  steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
  Json root = {{"model",
                {{"type", "BPE"},
                 {"ignore_merges", pre.ignore_merges},
                 {"vocab", std::move(vocabulary.vocab())},
                 {"merges", *merges}}},
               {"added_tokens", std::move(vocabulary.added())},
               {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}}},
               {"decoder", {{"type", "ByteLevel"}}}};
  if (pre.nfc) root["normalizer"] = {{"type", "NFC"}};
  return root;
}

// Every way to cut a token into two others is a merge; tokens of a higher score are made first.
absl::StatusOr<Json> MergesFromScores(const Json& metadata, const Vocabulary& vocabulary) {
  SY_ASSIGN_OR_RETURN(const Json* scores,
                      List(metadata, "tokenizer.ggml.scores", vocabulary.size()));
  std::unordered_map<std::string_view, size_t> ids;
  for (const auto& [text, id] : vocabulary.normal()) ids.emplace(text, id);
  struct Merge {
    double score;
    size_t left_chars, right_chars;
    std::string_view left, right;
  };
  std::vector<Merge> merges;
  for (const auto& [text, id] : vocabulary.normal()) {
    const Json& score = (*scores)[id];
    if (!score.is_number()) return InvalidArgument("tokenizer.ggml.scores[{}] is no number", id);
    std::vector<size_t> cuts;  // between characters
    for (size_t at = 0; at < text.size(); at += FirstUtf8(std::string_view(text).substr(at)).size) {
      cuts.push_back(at);
    }
    std::vector<std::tuple<size_t, size_t, Merge>> of_token;
    for (size_t i = 1; i < cuts.size(); ++i) {
      const std::string_view left = std::string_view(text).substr(0, cuts[i]);
      const std::string_view right = std::string_view(text).substr(cuts[i]);
      const auto l = ids.find(left), r = ids.find(right);
      if (l == ids.end() || r == ids.end()) continue;
      of_token.emplace_back(l->second, r->second,
                            Merge{score.get<double>(), i, cuts.size() - i, left, right});
    }
    std::ranges::sort(of_token, {},
                      [](const auto& m) { return std::pair(std::get<0>(m), std::get<1>(m)); });
    for (auto& merge : of_token) merges.push_back(std::get<2>(merge));
  }
  std::ranges::stable_sort(merges, std::greater(), [](const Merge& m) {
    return std::tuple(m.score, m.left_chars, m.right_chars);
  });
  Json out = Json::array();
  for (const Merge& merge : merges) {
    out.push_back(Json::array({std::string(merge.left), std::string(merge.right)}));
  }
  return out;
}

absl::StatusOr<Json> SentencePiece(const Json& metadata, Vocabulary& vocabulary) {
  SY_ASSIGN_OR_RETURN(Json merges, MergesFromScores(metadata, vocabulary));
  const std::string space(kSpace);
  const bool prefix = BoolOr(metadata, "tokenizer.ggml.add_space_prefix", true);
  Json normalizers = Json::array();
  if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", space}});
  normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", space}});
  Json decoders =
      Json::array({{{"type", "Replace"}, {"pattern", {{"String", space}}}, {"content", " "}},
                   {{"type", "ByteFallback"}},
                   {{"type", "Fuse"}}});
  if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  Json model = {{"type", "BPE"},
                {"fuse_unk", true},
                {"byte_fallback", true},
                {"vocab", std::move(vocabulary.vocab())},
                {"merges", std::move(merges)}};
  if (!vocabulary.unknown().empty()) model["unk_token"] = vocabulary.unknown();
  return Json{{"model", std::move(model)},
              {"added_tokens", std::move(vocabulary.added())},
              {"normalizer", {{"type", "Sequence"}, {"normalizers", std::move(normalizers)}}},
              {"decoder", {{"type", "Sequence"}, {"decoders", std::move(decoders)}}}};
}

// "tokenizer.chat_template" and "tokenizer.chat_template.<name>".
Json Templates(const Json& metadata) {
  constexpr std::string_view kKey = "tokenizer.chat_template";
  Json out = Json::array();
  for (const auto& [key, value] : metadata.items()) {
    if (!key.starts_with(kKey) || !value.is_string()) continue;
    const std::string_view rest = std::string_view(key).substr(kKey.size());
    if (rest.empty()) out.push_back({{"name", "default"}, {"template", value}});
    if (rest.size() > 1 && rest[0] == '.') {
      out.push_back({{"name", std::string(rest.substr(1))}, {"template", value}});
    }
  }
  return out;
}

absl::StatusOr<Json> Config(const Json& metadata, const Vocabulary& vocabulary, bool add_bos) {
  const std::string add_eos = "tokenizer.ggml.add_eos_token";
  if (BoolOr(metadata, add_eos, false)) {
    return Unimplemented("{} is true; supported: false", add_eos);
  }
  Json config = {{"add_bos_token", BoolOr(metadata, "tokenizer.ggml.add_bos_token", add_bos)}};
  const std::pair<const char*, const char*> names[] = {
      {"bos_token_id", "bos_token"},     {"eos_token_id", "eos_token"},
      {"unknown_token_id", "unk_token"}, {"seperator_token_id", "sep_token"},
      {"padding_token_id", "pad_token"}, {"mask_token_id", "mask_token"}};
  for (const auto& [name, field] : names) {
    if (std::string content = vocabulary.Content(metadata, name); !content.empty()) {
      config[field] = std::move(content);
    }
  }
  if (Json templates = Templates(metadata); !templates.empty()) {
    config["chat_template"] = std::move(templates);
  }
  return config;
}

}  // namespace

absl::StatusOr<TokenizerTrees> TokenizerFromGguf(const Json& metadata) {
  TokenizerTrees out;
  Vocabulary vocabulary;
  SY_RETURN_IF_ERROR(vocabulary.Read(metadata));
  const std::string model_key = "tokenizer.ggml.model", pre_key = "tokenizer.ggml.pre";
  const std::string model = StringOr(metadata, model_key, "");
  const std::string name = StringOr(metadata, pre_key, "");
  const GgufPreTokenizer* pre = FindGgufPreTokenizer(name);
  const bool add_bos = model == "llama" || (pre != nullptr && pre->add_bos);
  SY_ASSIGN_OR_RETURN(out.config, Config(metadata, vocabulary, add_bos));
  const std::string whole = StringOr(metadata, "tokenizer.huggingface.json", "");
  if (!whole.empty()) {
    out.tokenizer = Json::parse(whole, nullptr, /*allow_exceptions=*/false);
    return out;
  }
  if (model == "llama") {
    SY_ASSIGN_OR_RETURN(out.tokenizer, SentencePiece(metadata, vocabulary));
    return out;
  }
  if (model != "gpt2") {
    return Unimplemented("{} is \"{}\"; supported: gpt2, llama", model_key, model);
  }
  if (pre == nullptr) {
    return Unimplemented("{} is \"{}\"; supported: {}", pre_key, name, GgufPreTokenizerNames());
  }
  SY_ASSIGN_OR_RETURN(out.tokenizer, ByteLevel(metadata, *pre, vocabulary));
  return out;
}

}  // namespace switchyard
