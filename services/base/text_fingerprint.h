// What a gateway and its routers compare before they work together: whether both read the same
// config.json, tokenizer.json, tokenizer_config.json and chat_template.jinja.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace switchyard {

// 32 hex digits of the four files' bytes in a model's directory; a file that is not there counts as
// such. NOT_FOUND without config.json.
absl::StatusOr<std::string> TextFingerprint(const std::string& model_dir);

}  // namespace switchyard
