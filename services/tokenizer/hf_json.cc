// tokenizer.json → TokenizerSpec: vocabulary, merges, added tokens and post processor. The steps of
// normalizer, pre-tokenizer and decoder are read in hf_steps.cc.
#include <algorithm>
#include <string>
#include <utility>

#include "nlohmann/json.hpp"
#include "services/base/status.h"
#include "services/base/utf8.h"
#include "services/tokenizer/byte_alphabet.h"
#include "services/tokenizer/hf_steps.h"
#include "services/tokenizer/tokenizer_impl.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;

constexpr int64_t kIdMax = (1 << 24) - 1;
constexpr int kProcessorDepthMax = 8;
// Ids that may be unused: every id costs memory, whether it is or not.
constexpr size_t kUnusedIdsMax = 65536;

absl::StatusOr<int32_t> IdFrom(const Json& json, std::string_view where) {
  if (!json.is_number_integer() || json.get<int64_t>() < 0 || json.get<int64_t>() > kIdMax) {
    return InvalidArgument("tokenizer.json: {}: an id from 0 to {} expected", where, kIdMax);
  }
  return static_cast<int32_t>(json.get<int64_t>());
}

// The byte of "<0x0A>".
std::optional<uint8_t> FallbackByte(std::string_view content) {
  if (content.size() != 6 || content.substr(0, 3) != "<0x" || content[5] != '>') {
    return std::nullopt;
  }
  int value = 0;
  for (char c : content.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return std::nullopt;
    value = value * 16 + digit;
  }
  return static_cast<uint8_t>(value);
}

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  while (true) {
    const size_t at = text.find(from);
    out.append(text.substr(0, at));
    if (at == std::string_view::npos) return out;
    out.append(to);
    text.remove_prefix(at + from.size());
  }
}

class Loader {
 public:
  explicit Loader(const Json& root) : root_(root), spec_(std::make_unique<TokenizerSpec>()) {}

  absl::StatusOr<std::unique_ptr<TokenizerSpec>> Run() {
    const Json* model = FieldOf(root_, "model");
    if (model == nullptr || !model->is_object()) {
      return InvalidArgument("tokenizer.json: model is missing");
    }
    SY_RETURN_IF_ERROR(ReadModelFlags(*model));
    SY_ASSIGN_OR_RETURN(PreTokenizerSpec pre_tokenizer,
                        ReadPreTokenizer(FieldOf(root_, "pre_tokenizer")));
    spec_->pre_tokenize = std::move(pre_tokenizer.steps);
    spec_->model.byte_level = pre_tokenizer.byte_level;
    SY_ASSIGN_OR_RETURN(spec_->normalizer, ReadNormalizer(FieldOf(root_, "normalizer")));
    SY_ASSIGN_OR_RETURN(spec_->decoder, ReadDecoder(FieldOf(root_, "decoder")));
    entries_ = SizeOr0(FieldOf(*model, "vocab")) + SizeOr0(FieldOf(root_, "added_tokens"));
    SY_RETURN_IF_ERROR(ReadVocab(*model));
    SY_RETURN_IF_ERROR(ReadAddedTokens());
    IndexVocab();
    SY_RETURN_IF_ERROR(ReadMerges(*model));
    SY_RETURN_IF_ERROR(ReadUnknown(*model));
    if (const Json* processor = FieldOf(root_, "post_processor"); processor != nullptr) {
      SY_RETURN_IF_ERROR(ReadPostProcessor(*processor, 0));
    }
    return std::move(spec_);
  }

 private:
  absl::Status ReadModelFlags(const Json& model) {
    const std::string type = StringOr(model, "type", "BPE");
    if (type != "BPE") {
      return Unimplemented("tokenizer.json: model.type is \"{}\"; supported: BPE", type);
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!StringOr(model, key, "").empty()) {
        return Unimplemented("tokenizer.json: model.{} is not supported", key);
      }
    }
    if (const Json* dropout = FieldOf(model, "dropout");
        dropout != nullptr && !(dropout->is_number() && dropout->get<double>() == 0)) {
      return Unimplemented("tokenizer.json: model.dropout is not supported");
    }
    spec_->model.ignore_merges = BoolOr(model, "ignore_merges", false);
    spec_->model.byte_fallback = BoolOr(model, "byte_fallback", false);
    spec_->model.fuse_unknown = BoolOr(model, "fuse_unk", false);
    return absl::OkStatus();
  }

  static size_t SizeOr0(const Json* json) { return json == nullptr ? 0 : json->size(); }

  // The entry of an id that is not taken; unused entries are made up to it.
  absl::StatusOr<VocabEntry*> NewEntry(int32_t id, const std::string& content) {
    if (static_cast<size_t>(id) >= entries_ + kUnusedIdsMax) {
      return InvalidArgument(
          "tokenizer.json: \"{}\" has id {}; {} entries and {} unused ids reach up to {}", content,
          id, entries_, kUnusedIdsMax, entries_ + kUnusedIdsMax - 1);
    }
    if (static_cast<size_t>(id) >= spec_->vocab.size()) spec_->vocab.resize(id + 1);
    VocabEntry& entry = spec_->vocab[id];
    if (entry.known) {
      return InvalidArgument("tokenizer.json: id {} belongs to \"{}\" and to \"{}\"", id,
                             entry.content, content);
    }
    entry.known = true;
    entry.content = content;
    return &entry;
  }

  absl::Status ReadVocab(const Json& model) {
    const Json* vocab = FieldOf(model, "vocab");
    if (vocab == nullptr || !vocab->is_object() || vocab->empty()) {
      return InvalidArgument("tokenizer.json: model.vocab is missing or empty");
    }
    model_ids_.reserve(vocab->size());
    spec_->vocab.reserve(vocab->size());
    for (const auto& item : vocab->items()) {
      SY_ASSIGN_OR_RETURN(const int32_t id, IdFrom(item.value(), "model.vocab: " + item.key()));
      SY_ASSIGN_OR_RETURN(VocabEntry * entry, NewEntry(id, item.key()));
      entry->in_model = true;
      model_ids_.emplace(item.key(), id);
    }
    return absl::OkStatus();
  }

  absl::Status ReadAddedTokens() {
    const Json* added = FieldOf(root_, "added_tokens");
    if (added == nullptr) return absl::OkStatus();
    if (!added->is_array()) return InvalidArgument("tokenizer.json: added_tokens is no array");
    for (const Json& item : *added) {
      const std::string content = StringOr(item, "content", "");
      const Json* id_field = FieldOf(item, "id");
      if (content.empty() || id_field == nullptr) {
        return InvalidArgument("tokenizer.json: added_tokens: content and id are needed");
      }
      SY_ASSIGN_OR_RETURN(const int32_t id, IdFrom(*id_field, "added_tokens: " + content));
      SY_RETURN_IF_ERROR(AddToken(item, content, id));
    }
    return absl::OkStatus();
  }

  absl::Status AddToken(const Json& item, const std::string& content, int32_t id) {
    if (const auto [at, fresh] = added_ids_.emplace(content, id); !fresh) {
      return InvalidArgument("tokenizer.json: added_tokens: \"{}\" appears twice", content);
    }
    if (const auto known = model_ids_.find(content); known != model_ids_.end()) {
      if (known->second != id) {
        return InvalidArgument(
            "tokenizer.json: added_tokens: \"{}\" has id {}, in the vocabulary {}", content, id,
            known->second);
      }
    } else {
      SY_RETURN_IF_ERROR(NewEntry(id, content).status());
    }
    VocabEntry& entry = spec_->vocab[id];
    entry.added = true;
    entry.special = BoolOr(item, "special", false);
    // The default of normalized is the opposite of special, as in the Hugging Face library.
    spec_->added.push_back({.id = id,
                            .content = content,
                            .special = entry.special,
                            .normalized = BoolOr(item, "normalized", !entry.special),
                            .lstrip = BoolOr(item, "lstrip", false),
                            .rstrip = BoolOr(item, "rstrip", false),
                            .single_word = BoolOr(item, "single_word", false)});
    return absl::OkStatus();
  }

  // What an entry stands for in a text.
  void FillBytes(VocabEntry* entry) const {
    const DecoderSpec& decoder = spec_->decoder;
    entry->bytes = entry->content;
    if (decoder.byte_level) {
      if (auto bytes = BytesOfSpelling(entry->content)) entry->bytes = std::move(*bytes);
      return;
    }
    for (const auto& [from, to] : decoder.replacements) {
      entry->bytes = ReplaceAll(entry->bytes, from, to);
    }
    if (!decoder.byte_fallback) return;
    if (const auto byte = FallbackByte(entry->bytes)) {
      entry->bytes.assign(1, static_cast<char>(*byte));
      entry->is_byte = true;
    }
  }

  // From here on the vocabulary is not resized: the model's keys point into it.
  void IndexVocab() {
    BpeModel& model = spec_->model;
    model.byte_ids.fill(-1);
    for (size_t i = 0; i < spec_->vocab.size(); ++i) {
      VocabEntry& entry = spec_->vocab[i];
      if (!entry.known) continue;
      FillBytes(&entry);
      if (!entry.in_model) continue;
      const int32_t id = static_cast<int32_t>(i);
      if (!model.byte_level) {
        model.ids.emplace(entry.content, id);
        if (const auto byte = FallbackByte(entry.content)) {
          const std::string_view spelt = entry.content;
          const bool upper = spelt.find_first_of("abcdef") == std::string_view::npos;
          if (upper) model.byte_ids[*byte] = id;
        }
        continue;
      }
      auto bytes = BytesOfSpelling(entry.content);
      if (!bytes) continue;
      if (bytes->size() == 1) model.byte_ids[static_cast<uint8_t>((*bytes)[0])] = id;
      entry.model_bytes = std::move(*bytes);
      model.ids.emplace(entry.model_bytes, id);
    }
  }

  absl::StatusOr<int32_t> ModelId(std::string_view content, size_t merge) const {
    const auto found = model_ids_.find(content);
    if (found == model_ids_.end()) {
      return InvalidArgument("tokenizer.json: model.merges[{}]: \"{}\" is not in the vocabulary",
                             merge, content);
    }
    return found->second;
  }

  absl::Status ReadMerges(const Json& model) {
    const Json* merges = FieldOf(model, "merges");
    if (merges == nullptr) return absl::OkStatus();
    if (!merges->is_array()) return InvalidArgument("tokenizer.json: model.merges is no array");
    spec_->model.merges.reserve(merges->size());
    for (size_t i = 0; i < merges->size(); ++i) {
      SY_ASSIGN_OR_RETURN(const auto pair, MergePair((*merges)[i], i));
      SY_ASSIGN_OR_RETURN(const int32_t left, ModelId(pair.first, i));
      SY_ASSIGN_OR_RETURN(const int32_t right, ModelId(pair.second, i));
      SY_ASSIGN_OR_RETURN(const int32_t whole, ModelId(pair.first + pair.second, i));
      const uint64_t key = (static_cast<uint64_t>(left) << 32) | static_cast<uint32_t>(right);
      spec_->model.merges[key] = {static_cast<uint32_t>(i), whole};
    }
    return absl::OkStatus();
  }

  // "a b" or ["a", "b"].
  static absl::StatusOr<std::pair<std::string, std::string>> MergePair(const Json& json, size_t i) {
    if (json.is_string()) {
      const auto& text = json.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
        return std::pair(text.substr(0, space), text.substr(space + 1));
      }
    } else if (json.is_array() && json.size() == 2 && json[0].is_string() && json[1].is_string()) {
      return std::pair(json[0].get<std::string>(), json[1].get<std::string>());
    }
    return InvalidArgument("tokenizer.json: model.merges[{}]: a pair expected", i);
  }

  absl::Status ReadUnknown(const Json& model) {
    const std::string unknown = StringOr(model, "unk_token", "");
    if (unknown.empty()) return absl::OkStatus();
    const auto found = model_ids_.find(unknown);
    if (found == model_ids_.end()) {
      return InvalidArgument("tokenizer.json: model.unk_token \"{}\" is not in the vocabulary",
                             unknown);
    }
    spec_->model.unknown_id = found->second;
    return absl::OkStatus();
  }

  absl::Status ReadPostProcessor(const Json& json, int depth) {
    const std::string type = StringOr(json, "type", "");
    if (type == "ByteLevel") return absl::OkStatus();  // offsets only
    if (type == "TemplateProcessing") return ReadTemplate(json);
    if (type != "Sequence") {
      return Unimplemented(
          "tokenizer.json: post_processor.type \"{}\" is not supported; supported: Sequence, "
          "TemplateProcessing, ByteLevel",
          type);
    }
    const Json* list = FieldOf(json, "processors");
    if (list == nullptr || !list->is_array() || depth == kProcessorDepthMax) {
      return InvalidArgument("tokenizer.json: post_processor: a Sequence needs processors");
    }
    for (const Json& step : *list) SY_RETURN_IF_ERROR(ReadPostProcessor(step, depth + 1));
    return absl::OkStatus();
  }

  absl::Status ReadTemplate(const Json& json) {
    const Json* single = FieldOf(json, "single");
    if (single == nullptr || !single->is_array()) {
      return Unimplemented("tokenizer.json: post_processor: TemplateProcessing without single");
    }
    std::vector<int32_t> before;
    std::vector<int32_t> behind;
    bool seen_text = false;
    for (const Json& item : *single) {
      if (const Json* sequence = FieldOf(item, "Sequence"); sequence != nullptr) {
        if (seen_text || StringOr(*sequence, "id", "") != "A") {
          return Unimplemented("tokenizer.json: post_processor: single must hold $A once");
        }
        seen_text = true;
        continue;
      }
      SY_RETURN_IF_ERROR(AppendSpecial(json, item, seen_text ? &behind : &before));
    }
    if (!seen_text) return InvalidArgument("tokenizer.json: post_processor: single lacks $A");
    spec_->prefix.insert(spec_->prefix.begin(), before.begin(), before.end());
    spec_->suffix.insert(spec_->suffix.end(), behind.begin(), behind.end());
    return absl::OkStatus();
  }

  absl::Status AppendSpecial(const Json& json, const Json& item, std::vector<int32_t>* out) const {
    const Json* special = FieldOf(item, "SpecialToken");
    const std::string name = special == nullptr ? "" : StringOr(*special, "id", "");
    const Json* table = FieldOf(json, "special_tokens");
    const Json* token = table == nullptr ? nullptr : FieldOf(*table, name);
    const Json* ids = token == nullptr ? nullptr : FieldOf(*token, "ids");
    if (ids == nullptr || !ids->is_array()) {
      return InvalidArgument("tokenizer.json: post_processor: special token \"{}\" is not defined",
                             name);
    }
    for (const Json& id_field : *ids) {
      SY_ASSIGN_OR_RETURN(const int32_t id, IdFrom(id_field, "post_processor: " + name));
      if (static_cast<size_t>(id) >= spec_->vocab.size() || !spec_->vocab[id].known) {
        return InvalidArgument("tokenizer.json: post_processor: \"{}\" has the unknown id {}", name,
                               id);
      }
      out->push_back(id);
    }
    return absl::OkStatus();
  }

  const Json& root_;
  size_t entries_ = 0;  // of vocabulary and added tokens
  IdByText model_ids_;  // keys point into root_
  std::map<std::string, int32_t> added_ids_;
  std::unique_ptr<TokenizerSpec> spec_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TokenizerSpec>> ReadTokenizerJson(const Json& root) {
  if (!root.is_object()) return InvalidArgument("tokenizer.json: not a JSON object");
  return Loader(root).Run();
}

}  // namespace switchyard
