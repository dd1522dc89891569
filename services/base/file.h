// Small whole files (configs, keys, tokenizers, reports), with the path in every error.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace switchyard {

// The whole file as bytes. INVALID_ARGUMENT if it is longer than max_bytes, NOT_FOUND if it cannot
// be opened.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes);

// The file becomes `text`; UNAVAILABLE if it cannot be written whole, and what is there then is
// unspecified.
absl::Status WriteFile(const std::string& path, std::string_view text);

bool FileExists(const std::string& path);

}  // namespace switchyard
