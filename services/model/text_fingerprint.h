// What a gateway and its routers compare before they work together: whether both read the same
// config.json, tokenizer.json, tokenizer_config.json and chat_template.jinja, or GGUF metadata.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace switchyard {

// 32 hex digits of the four files' bytes in a model's directory, where a file that is not there
// counts as such, or of the metadata's bytes of a .gguf file. NOT_FOUND without config.json.
absl::StatusOr<std::string> TextFingerprint(const std::string& model);

}  // namespace switchyard
