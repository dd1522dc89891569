// Text to values and back for knobs: bytes, durations, addresses. Errors say what was found and
// what is expected; the caller adds where it stood.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace switchyard::config {

// "4GiB", "512 MiB", "1.5GB", "1024"; units B, KB, MB, GB, TB (powers of 1000) and KiB … TiB.
absl::StatusOr<int64_t> ParseBytes(std::string_view text);
std::string FormatBytes(int64_t bytes);  // "3.2 GiB"

// "30s", "1m30s", "250ms", "inf"; not negative.
absl::StatusOr<absl::Duration> ParseDuration(std::string_view text);

// "HOST:PORT", "[::1]:PORT" or "unix:PATH".
absl::Status CheckAddress(std::string_view text);

}  // namespace switchyard::config
