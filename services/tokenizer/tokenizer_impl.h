// What a Tokenizer holds; shared by its source files only.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "services/tokenizer/added_tokens.h"
#include "services/tokenizer/bpe.h"
#include "services/tokenizer/decoder.h"
#include "services/tokenizer/normalize.h"
#include "services/tokenizer/pretokenize.h"
#include "services/tokenizer/tokenizer.h"

namespace switchyard {

// One entry of the vocabulary.
struct VocabEntry {
  std::string content;      // as the vocabulary spells it
  std::string bytes;        // what it stands for in a text
  std::string model_bytes;  // the bytes that a byte-level model looks it up by
  bool known = false;
  bool in_model = false;  // of the BPE vocabulary, not only an added token
  bool added = false;
  bool special = false;
  bool is_byte = false;  // a byte of the fallback
};

// What tokenizer.json says.
struct TokenizerSpec {
  std::vector<VocabEntry> vocab;  // by id
  std::vector<AddedToken> added;
  BpeModel model;  // its keys point into vocab
  Normalizer normalizer;
  std::vector<PreTokenizeStep> pre_tokenize;
  DecoderSpec decoder;
  std::vector<int32_t> prefix;  // of the post processor
  std::vector<int32_t> suffix;
};

// What tokenizer_config.json says.
struct TokenizerConfig {
  std::map<std::string, std::string> special_tokens;
  bool add_bos_token = false;
  int64_t model_max_length = 0;
  std::vector<NamedTemplate> templates;
};

// hf_json.cc: INVALID_ARGUMENT that names the place for what is broken, UNIMPLEMENTED for what is
// not supported.
absl::StatusOr<std::unique_ptr<TokenizerSpec>> ReadTokenizerJson(const nlohmann::json& root);
// hf_config.cc.
absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const nlohmann::json& root);

struct Tokenizer::Impl {
  explicit Impl(std::unique_ptr<TokenizerSpec> spec)
      : spec(std::move(spec)), bpe(&this->spec->model) {}

  // Work space of one Encode call; kept for the next.
  struct Scratch {
    PieceBuffer pieces;
    BpeScratch bpe;
  };
  // Fills everything below from spec and config.
  absl::Status Index();
  std::unique_ptr<Scratch> TakeScratch();
  void ReturnScratch(std::unique_ptr<Scratch> scratch);

  absl::Status EncodeText(std::string_view text, Scratch* scratch, std::vector<int32_t>* out) const;
  absl::Status EncodeSegment(std::string_view text, bool at_start, Scratch* scratch,
                             std::vector<int32_t>* out) const;
  const VocabEntry* Entry(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < spec->vocab.size() && spec->vocab[id].known
               ? &spec->vocab[id]
               : nullptr;
  }

  const std::unique_ptr<const TokenizerSpec> spec;
  const BpeEncoder bpe;
  AddedTokenMatcher raw_added;
  AddedTokenMatcher normalized_added;
  absl::flat_hash_map<std::string_view, int32_t, StringViewHash> id_of_content;
  TokenizerConfig config;
  std::string bos_token;
  std::string eos_token;
  std::vector<int32_t> prefix;  // the post processor's, with the BOS that the config asks for

  absl::Mutex scratch_mutex;
  std::vector<std::unique_ptr<Scratch>> scratches ABSL_GUARDED_BY(scratch_mutex);
};

}  // namespace switchyard
