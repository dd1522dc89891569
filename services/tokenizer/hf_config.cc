// tokenizer_config.json → TokenizerConfig.
#include <algorithm>
#include <utility>

#include "nlohmann/json.hpp"
#include "services/base/status.h"
#include "services/tokenizer/hf_steps.h"
#include "services/tokenizer/tokenizer_impl.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;

// A string, or {"content": string, …}.
std::string TokenText(const Json& json) {
  return json.is_string() ? json.get<std::string>() : StringOr(json, "content", "");
}

absl::Status ReadTemplates(const Json& json, std::vector<NamedTemplate>* out) {
  if (json.is_string()) {
    out->push_back({"default", json.get<std::string>()});
    return absl::OkStatus();
  }
  if (!json.is_array()) {
    return InvalidArgument("tokenizer_config.json: chat_template: a string or a list expected");
  }
  for (const Json& item : json) {
    NamedTemplate named{StringOr(item, "name", ""), StringOr(item, "template", "")};
    if (named.name.empty()) {
      return InvalidArgument("tokenizer_config.json: chat_template: an entry has no name");
    }
    out->push_back(std::move(named));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const Json& root) {
  TokenizerConfig config;
  if (!root.is_object()) return InvalidArgument("tokenizer_config.json: not a JSON object");
  for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                           "cls_token", "mask_token"}) {
    if (const Json* token = FieldOf(root, name); token != nullptr) {
      if (std::string content = TokenText(*token); !content.empty()) {
        config.special_tokens[name] = std::move(content);
      }
    }
  }
  config.add_bos_token = BoolOr(root, "add_bos_token", false);
  // Some publish 1e30 for "no limit".
  if (const Json* length = FieldOf(root, "model_max_length");
      length != nullptr && length->is_number_integer()) {
    config.model_max_length = std::max<int64_t>(0, length->get<int64_t>());
  }
  if (const Json* templates = FieldOf(root, "chat_template"); templates != nullptr) {
    SY_RETURN_IF_ERROR(ReadTemplates(*templates, &config.templates));
  }
  return config;
}

}  // namespace switchyard
