// Small whole-file reads (configs, keys, tokenizers), with the path in every error.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace switchyard {

// The whole file as bytes. INVALID_ARGUMENT if it is longer than max_bytes, NOT_FOUND if it cannot
// be opened.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes);

bool FileExists(const std::string& path);

}  // namespace switchyard
