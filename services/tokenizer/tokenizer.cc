#include "services/tokenizer/tokenizer.h"

#include <algorithm>
#include <utility>

#include "services/base/file.h"
#include "services/base/status.h"
#include "services/base/utf8.h"
#include "services/gguf/header.h"
#include "services/tokenizer/gguf_tokenizer.h"
#include "services/tokenizer/stream_decoder.h"
#include "services/tokenizer/tokenizer_impl.h"

namespace switchyard {
namespace {

constexpr uint64_t kFileBytesMax = 256 << 20;
constexpr size_t kScratchesKept = 16;

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  if (gguf::IsGguf(path)) {
    auto tokenizer = FromGguf(path);
    if (!tokenizer.ok()) return Annotate(tokenizer.status(), path);
    return tokenizer;
  }
  TokenizerFiles files;
  SY_ASSIGN_OR_RETURN(files.tokenizer_json, ReadFile(path + "/tokenizer.json", kFileBytesMax));
  const std::string config = path + "/tokenizer_config.json";
  if (FileExists(config)) {
    SY_ASSIGN_OR_RETURN(files.tokenizer_config_json, ReadFile(config, kFileBytesMax));
  }
  const std::string chat = path + "/chat_template.jinja";
  if (FileExists(chat)) {
    SY_ASSIGN_OR_RETURN(files.chat_template_jinja, ReadFile(chat, kFileBytesMax));
  }
  auto tokenizer = FromFiles(files);
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), path);
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromFiles(const TokenizerFiles& files) {
  const auto tree = [](const std::string& text) {
    return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  };
  SY_ASSIGN_OR_RETURN(auto spec, ReadTokenizerJson(tree(files.tokenizer_json)));
  auto impl = std::make_unique<Impl>(std::move(spec));
  if (!files.tokenizer_config_json.empty()) {
    SY_ASSIGN_OR_RETURN(impl->config, ReadTokenizerConfig(tree(files.tokenizer_config_json)));
  }
  if (!files.chat_template_jinja.empty()) {
    auto& templates = impl->config.templates;
    std::erase_if(templates, [](const NamedTemplate& t) { return t.name == "default"; });
    templates.push_back({"default", files.chat_template_jinja});
  }
  SY_RETURN_IF_ERROR(impl->Index());
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromGguf(const std::string& path) {
  SY_ASSIGN_OR_RETURN(const gguf::Header header, gguf::ReadHeader(path));
  SY_ASSIGN_OR_RETURN(const TokenizerTrees trees, TokenizerFromGguf(header.metadata));
  SY_ASSIGN_OR_RETURN(auto spec, ReadTokenizerJson(trees.tokenizer));
  auto impl = std::make_unique<Impl>(std::move(spec));
  SY_ASSIGN_OR_RETURN(impl->config, ReadTokenizerConfig(trees.config));
  SY_RETURN_IF_ERROR(impl->Index());
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::Status Tokenizer::Impl::Index() {
  for (size_t id = 0; id < spec->vocab.size(); ++id) {
    if (spec->vocab[id].known) id_of_content[spec->vocab[id].content] = static_cast<int32_t>(id);
  }
  RegexScratch scratch;
  // Special tokens first: of equal patterns the first counts.
  for (const bool special : {true, false}) {
    for (const AddedToken& token : spec->added) {
      if (token.special != special) continue;
      if (!token.normalized) {
        raw_added.Add(token, token.content);
        continue;
      }
      SY_ASSIGN_OR_RETURN(const std::string pattern,
                          spec->normalizer.Normalize(token.content, &scratch));
      normalized_added.Add(token, pattern);
    }
  }
  const auto named = [&](const char* name) {
    const auto found = config.special_tokens.find(name);
    return found == config.special_tokens.end() ? std::string() : found->second;
  };
  bos_token = named("bos_token");
  eos_token = named("eos_token");
  prefix = spec->prefix;
  const auto bos = id_of_content.find(bos_token);
  if (config.add_bos_token && bos != id_of_content.end() &&
      std::find(prefix.begin(), prefix.end(), bos->second) == prefix.end()) {
    prefix.insert(prefix.begin(), bos->second);
  }
  return absl::OkStatus();
}

std::unique_ptr<Tokenizer::Impl::Scratch> Tokenizer::Impl::TakeScratch() {
  {
    absl::MutexLock lock(&scratch_mutex);
    if (!scratches.empty()) {
      auto scratch = std::move(scratches.back());
      scratches.pop_back();
      return scratch;
    }
  }
  return std::make_unique<Scratch>();
}

void Tokenizer::Impl::ReturnScratch(std::unique_ptr<Scratch> scratch) {
  absl::MutexLock lock(&scratch_mutex);
  if (scratches.size() < kScratchesKept) scratches.push_back(std::move(scratch));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                                       const EncodeOptions& options) const {
  std::string mended;
  if (!IsValidUtf8(text)) {
    AppendLossy(text, &mended);
    text = mended;
  }
  std::vector<int32_t> ids;
  if (options.add_special_tokens) ids = impl_->prefix;
  auto scratch = impl_->TakeScratch();
  const absl::Status status = impl_->EncodeText(text, scratch.get(), &ids);
  impl_->ReturnScratch(std::move(scratch));
  SY_RETURN_IF_ERROR(status);
  if (options.add_special_tokens) {
    ids.insert(ids.end(), impl_->spec->suffix.begin(), impl_->spec->suffix.end());
  }
  return ids;
}

absl::Status Tokenizer::Impl::EncodeText(std::string_view text, Scratch* scratch,
                                         std::vector<int32_t>* out) const {
  for (const Segment& raw : raw_added.Split(text)) {
    if (raw.id >= 0) {
      out->push_back(raw.id);
      continue;
    }
    std::string_view normalized = raw.text;
    std::string owned;
    if (!spec->normalizer.empty()) {
      SY_ASSIGN_OR_RETURN(owned, spec->normalizer.Normalize(raw.text, &scratch->pieces.regex));
      normalized = owned;
    }
    const bool at_start = raw.text.data() == text.data();
    for (const Segment& segment : normalized_added.Split(normalized)) {
      if (segment.id >= 0) {
        out->push_back(segment.id);
        continue;
      }
      SY_RETURN_IF_ERROR(EncodeSegment(
          segment.text, at_start && segment.text.data() == normalized.data(), scratch, out));
    }
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::EncodeSegment(std::string_view text, bool at_start, Scratch* scratch,
                                            std::vector<int32_t>* out) const {
  SY_RETURN_IF_ERROR(PreTokenize(spec->pre_tokenize, text, at_start, &scratch->pieces));
  for (std::string_view piece : scratch->pieces.pieces) bpe.Encode(piece, &scratch->bpe, out);
  return absl::OkStatus();
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  StreamDecoder decoder(*this, skip_special);
  std::string text = decoder.Push(ids);
  text += decoder.Flush();
  return text;
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  const VocabEntry* entry = impl_->Entry(id);
  return entry == nullptr ? std::string_view() : std::string_view(entry->bytes);
}

std::string_view Tokenizer::TokenContent(int32_t id) const {
  const VocabEntry* entry = impl_->Entry(id);
  return entry == nullptr ? std::string_view() : std::string_view(entry->content);
}

std::optional<int32_t> Tokenizer::IdOf(std::string_view content) const {
  const auto found = impl_->id_of_content.find(content);
  if (found == impl_->id_of_content.end()) return std::nullopt;
  return found->second;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->spec->vocab.size()); }
bool Tokenizer::IsKnown(int32_t id) const { return impl_->Entry(id) != nullptr; }

bool Tokenizer::IsAdded(int32_t id) const {
  const VocabEntry* entry = impl_->Entry(id);
  return entry != nullptr && entry->added;
}

bool Tokenizer::IsSpecial(int32_t id) const {
  const VocabEntry* entry = impl_->Entry(id);
  return entry != nullptr && entry->special;
}

std::optional<int32_t> Tokenizer::bos_id() const { return IdOf(impl_->bos_token); }
std::optional<int32_t> Tokenizer::eos_id() const { return IdOf(impl_->eos_token); }
const std::string& Tokenizer::bos_token() const { return impl_->bos_token; }
const std::string& Tokenizer::eos_token() const { return impl_->eos_token; }
bool Tokenizer::add_bos_token() const { return impl_->config.add_bos_token; }
int64_t Tokenizer::model_max_length() const { return impl_->config.model_max_length; }

const std::map<std::string, std::string>& Tokenizer::special_tokens() const {
  return impl_->config.special_tokens;
}

const std::vector<NamedTemplate>& Tokenizer::chat_templates() const {
  return impl_->config.templates;
}

const std::string* Tokenizer::chat_template(std::string_view name) const {
  for (const NamedTemplate& named : impl_->config.templates) {
    if (named.name == name) return &named.text;
  }
  return nullptr;
}

}  // namespace switchyard
