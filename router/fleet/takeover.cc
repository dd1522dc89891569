#include "router/fleet/takeover.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "services/base/mix.h"

namespace switchyard::router {
namespace {

// FNV-1a, finished by SplitMix64's mixing: routers of different builds must agree.
uint64_t Hash(std::string_view name, int layer, int expert) {
  uint64_t h = 0xcbf29ce484222325u;
  const auto add = [&h](uint8_t byte) { h = (h ^ byte) * 0x100000001b3u; };
  for (const char c : name) add(static_cast<uint8_t>(c));
  for (int shift = 0; shift < 32; shift += 8) add(static_cast<uint8_t>(layer >> shift));
  for (int shift = 0; shift < 32; shift += 8) add(static_cast<uint8_t>(expert >> shift));
  return MixBits(h);
}

// The larger the likelier, in proportion to the weight (Schindelhauer, Schomaker 2005).
double Score(uint64_t hash, double weight) {
  const double u = (static_cast<double>(hash >> 11) + 0.5) * 0x1p-53;  // in (0, 1)
  return -weight / std::log(u);
}

}  // namespace

std::vector<std::vector<size_t>> SpreadOrphans(std::span<const Orphan> orphans,
                                               std::span<const Survivor> survivors) {
  std::vector<std::vector<size_t>> out(survivors.size());
  std::vector<uint64_t> room;
  for (const Survivor& s : survivors)
    room.push_back(s.free_bytes / std::max<uint64_t>(1, s.expert_bytes));
  std::vector<size_t> order(orphans.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return orphans[a].wanted > orphans[b].wanted; });
  // The best of those that do not refuse it and have room, or of all where `beyond`; -1: nobody.
  const auto best_for = [&](size_t o, bool beyond) {
    int best = -1;
    double best_score = 0;
    for (size_t s = 0; s < survivors.size(); ++s) {
      const Survivor& survivor = survivors[s];
      if (o < survivor.refuses.size() && survivor.refuses[o]) continue;
      if (room[s] == 0 && !beyond) continue;
      const double weight = beyond ? 1 : static_cast<double>(survivor.free_bytes);
      const double score = Score(Hash(survivor.name, orphans[o].layer, orphans[o].expert), weight);
      if (best < 0 || score > best_score) best = static_cast<int>(s), best_score = score;
    }
    return best;
  };
  for (const size_t o : order) {
    int best = best_for(o, false);
    if (best < 0) best = best_for(o, true);
    if (best < 0) continue;
    if (room[static_cast<size_t>(best)] > 0) --room[static_cast<size_t>(best)];
    out[static_cast<size_t>(best)].push_back(o);
  }
  return out;
}

}  // namespace switchyard::router
