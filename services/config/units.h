// Text to values and back for knobs: bytes, durations, addresses, sets of experts. Errors say what
// was found and what is expected; the caller adds where it stood.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace switchyard::config {

// "4GiB", "512 MiB", "1.5GB", "1024B"; units B, KB, MB, GB, TB (powers of 1000) and KiB … TiB.
// Without a unit only 0, which most often means a default.
absl::StatusOr<int64_t> ParseBytes(std::string_view text);
std::string FormatBytes(int64_t bytes);  // "3.2 GiB"

// "30s", "1m30s", "250ms", "inf"; not negative.
absl::StatusOr<absl::Duration> ParseDuration(std::string_view text);

// "HOST:PORT", "[::1]:PORT" or "unix:PATH".
absl::Status CheckAddress(std::string_view text);
// The same, or "dns:NAME:PORT": every address of a name (services/discovery/address_watch.h).
absl::Status CheckPeerAddress(std::string_view text);

// Experts of a layer as --experts names them, before a model says how many there are.
struct ExpertRanges {
  struct Range {
    int first = 0, last = 0;
  };
  std::vector<Range> ranges;
  int part = 0, parts = 0;  // part i of n; parts 0: `ranges`, and without those all
};
// "0-63,70": ids and ranges, in any order; "i/n": part i of n, from 0; empty: all.
absl::StatusOr<ExpertRanges> ParseExpertRanges(std::string_view text);

}  // namespace switchyard::config
