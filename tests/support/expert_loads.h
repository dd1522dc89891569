// Rows per (layer, expert) in successive windows of time, to plan placements for: made up, the same
// on every machine, or recorded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard::test {

using ExpertRows = std::vector<std::vector<double>>;  // [layer][expert]

struct ExpertLoads {
  std::string name;
  int experts_per_group = 1;
  std::vector<ExpertRows> windows;

  int layers() const { return static_cast<int>(windows.front().size()); }
  int experts() const { return static_cast<int>(windows.front().front().size()); }
};

struct ZipfOptions {
  int layers = 8;
  int experts = 64;
  double exponent = 1;  // rows fall with rank^-exponent; who has which rank differs by layer
  int windows = 10;
  double drift = 0.1;  // from window to window: part of the experts that trade ranks,
  double noise = 0.1;  // and how much more or less all of them have
  uint64_t seed = 7;
};
ExpertLoads ZipfLoads(const ZipfOptions& options);

// Of tests/golden/loads/tiny-r1.json: what tiny-r1's gate did while it was asked for other
// things in each window.
ExpertLoads RecordedLoads();

}  // namespace switchyard::test
