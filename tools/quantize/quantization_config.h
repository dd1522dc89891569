// config.json of a quantised checkpoint: the original's, and quantization_config in the words of
// the tools that read it (compressed-tensors; of fp8 DeepSeek's own).
#pragma once

#include <string>

#include "absl/status/status.h"
#include "tools/quantize/matrix_codec.h"

namespace switchyard::quantize {

// INVALID_ARGUMENT where the directory's config.json says that its weights are quantised.
absl::Status CheckNotQuantised(const std::string& directory);

absl::Status WriteConfig(const std::string& from, const std::string& to, const Format& format);

}  // namespace switchyard::quantize
