// The steps in tokenizer.json: normalizer, pre_tokenizer, decoder. What is not supported is refused
// with UNIMPLEMENTED and its name, what is broken with INVALID_ARGUMENT and its place.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "services/tokenizer/decoder.h"
#include "services/tokenizer/normalize.h"
#include "services/tokenizer/pretokenize.h"

namespace switchyard {

// A member of an object; nullptr where it is missing or null.
const nlohmann::json* FieldOf(const nlohmann::json& object, std::string_view key);
// The fallback also where the member is of another type.
std::string StringOr(const nlohmann::json& object, std::string_view key, std::string_view fallback);
bool BoolOr(const nlohmann::json& object, std::string_view key, bool fallback);

// Each takes nullptr for a member that is null.
absl::StatusOr<Normalizer> ReadNormalizer(const nlohmann::json* json);
struct PreTokenizerSpec {
  std::vector<PreTokenizeStep> steps;
  bool byte_level = false;  // pieces are spelt in the byte-level alphabet at the end
};
absl::StatusOr<PreTokenizerSpec> ReadPreTokenizer(const nlohmann::json* json);
absl::StatusOr<DecoderSpec> ReadDecoder(const nlohmann::json* json);

}  // namespace switchyard
