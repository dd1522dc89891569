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

// The file becomes `text`, in one piece where it is a regular one or new: who reads it meanwhile
// finds the old text or the new. UNAVAILABLE if it cannot be written whole; it then stays as it
// was.
absl::Status WriteFile(const std::string& path, std::string_view text);

// All of `bytes` to a descriptor of the file. UNAVAILABLE says how many are missing.
absl::Status WriteAll(int fd, const std::string& path, std::string_view bytes);

bool FileExists(const std::string& path);

}  // namespace switchyard
