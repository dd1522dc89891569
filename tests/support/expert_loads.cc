#include "tests/support/expert_loads.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <utility>

#include "services/base/check.h"
#include "services/base/file.h"
#include "tests/support/golden.h"

namespace switchyard::test {
namespace {

// The standard's distributions differ between libraries, its generators do not.
class Draws {
 public:
  explicit Draws(uint64_t seed) : random_(seed) {}
  size_t Below(size_t bound) { return static_cast<size_t>(random_() % bound); }
  double Unit() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

 private:
  std::mt19937_64 random_;
};

}  // namespace

ExpertLoads ZipfLoads(const ZipfOptions& options) {
  Draws draws(options.seed);
  ExpertLoads loads{.name = fmt::format("Zipf {:.1f}", options.exponent), .windows = {}};
  const auto experts = static_cast<size_t>(options.experts);
  std::vector<std::vector<int>> ranks(static_cast<size_t>(options.layers));
  for (std::vector<int>& rank : ranks) {
    rank.resize(experts);
    std::iota(rank.begin(), rank.end(), 0);
    for (size_t i = experts; i > 1; --i) std::swap(rank[i - 1], rank[draws.Below(i)]);
  }
  for (int window = 0; window < options.windows; ++window) {
    ExpertRows& rows = loads.windows.emplace_back();
    for (std::vector<int>& rank : ranks) {
      const auto swaps = static_cast<int>(std::lround(options.drift * options.experts / 2));
      for (int i = 0; window > 0 && i < swaps; ++i) {
        std::swap(rank[draws.Below(experts)], rank[draws.Below(experts)]);
      }
      std::vector<double>& layer = rows.emplace_back();
      for (const int r : rank) {
        const double factor = 1 + options.noise * (2 * draws.Unit() - 1);
        layer.push_back(std::floor(1e6 * std::pow(r + 1.0, -options.exponent) * factor));
      }
    }
  }
  return loads;
}

ExpertLoads RecordedLoads() {
  constexpr uint64_t kBytesMax = 1 << 20;
  const auto text = ReadFile(SourcePath("tests/golden/loads/tiny-r1.json"), kBytesMax);
  SY_CHECK(text.ok());
  const auto json = nlohmann::json::parse(*text);
  ExpertLoads loads{.name = "tiny-r1, recorded",
                    .experts_per_group = json.at("experts_per_group").get<int>(),
                    .windows = {}};
  for (const auto& window : json.at("windows")) {
    loads.windows.push_back(window.at("rows").get<ExpertRows>());
  }
  return loads;
}

}  // namespace switchyard::test
