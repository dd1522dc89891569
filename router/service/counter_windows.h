// What counters that only grow have counted lately: over the last 1, 10 and 60 s, up to now. Keeps
// some ten snapshots for each of these windows, however long it runs.
//
// Thread-compatible. Pure: time is what the caller says.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

namespace switchyard::router {

class CounterWindows {
 public:
  using Clock = std::chrono::steady_clock;  // no window heeds a jump of the wall clock
  using Time = Clock::time_point;
  static constexpr std::array<std::chrono::seconds, 3> kWindows = {
      std::chrono::seconds(1), std::chrono::seconds(10), std::chrono::seconds(60)};

  // Whether it is time for a snapshot.
  bool Due(Time now) const;
  // `now` never falls. Later snapshots may have more counters.
  void Add(Time now, std::vector<uint64_t> counters);

  struct Counts {
    double seconds =
        0;  // that it really spans: up to an eighth more than its name, or less at first
    std::vector<uint64_t> counts;
  };
  // Of kWindows[window], for counters that stand at `counters` now. One that has fallen was begun
  // anew, and counts with what it has.
  Counts Over(size_t window, Time now, std::span<const uint64_t> counters) const;

 private:
  static constexpr int kSnapshots = 8;  // that a window is divided by
  struct Snapshot {
    Time at;
    std::shared_ptr<const std::vector<uint64_t>> counters;  // rings share them
  };
  using Ring = std::deque<Snapshot>;
  bool Due(size_t window, Time now) const;

  std::array<Ring, kWindows.size()> rings_;  // oldest first
};

}  // namespace switchyard::router
