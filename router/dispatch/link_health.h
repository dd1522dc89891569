// What a router has seen of its links: how long answers take, which links are outliers, how many
// rows may be sent twice. Pure; times are given. Driven by the engine thread.
#pragma once

#include <array>
#include <cstdint>

#include "absl/time/time.h"

namespace switchyard::router {

// A percentile of recent latencies of parts, by size of the part (power of two of its pairs): older
// values fade as new ones come.
class LatencyPercentile {
 public:
  void Add(uint64_t pairs, absl::Duration latency);
  // The 99th, rounded up by an eighth of an octave at most; `unknown` where too few were seen.
  absl::Duration P99(uint64_t pairs, absl::Duration unknown) const;

 private:
  static constexpr int kSizes = 16;
  static constexpr int kSteps = 8;  // of an octave
  static constexpr int kBuckets = 28 * kSteps;
  static constexpr uint32_t kEnough = 64;
  static constexpr uint32_t kFade = 4096;  // all counts are halved then

  struct Size {
    std::array<uint32_t, kBuckets> counts{};
    uint32_t count = 0;
    absl::Duration p99;  // as of the last look
    uint32_t looked_at = 0;
  };
  void Look(Size& size) const;

  std::array<Size, kSizes> sizes_;
};

// Outlier ejection of one link, with half-open probes: who fails is left alone for a while, longer
// each time; then it is tried with what one planning has for it, a probe.
class LinkHealth {
 public:
  static constexpr int kStrikes = 3;
  static constexpr absl::Duration kFirstRest = absl::Milliseconds(500);
  static constexpr absl::Duration kLongestRest = absl::Seconds(30);

  // A part was answered as it should be, and nobody was faster.
  void OnGood();
  // A replica that was asked later answered first.
  void OnBeaten(absl::Time now);
  // The stream broke, or nothing is heard while calls are open.
  void OnBad(absl::Time now);
  // A part goes to it. Returns the probe that it is of; 0: of none.
  uint64_t OnSend(absl::Time now);
  // A part of this probe is out no more, whatever became of it. Where nothing of the above was said
  // nothing is known, and another may try.
  void OnProbeOver(uint64_t probe);

  // Whether it should be left alone where others can do the work.
  bool Ejected(absl::Time now) const;
  uint64_t ejections() const { return ejections_; }

 private:
  int strikes_ = 0;
  bool resting_ = false;  // until a probe is answered
  bool probe_out_ = false;
  uint64_t probes_ = 0;
  absl::Time probe_after_ = absl::InfinitePast();
  absl::Duration rest_ = kFirstRest;
  uint64_t ejections_ = 0;
};

// At most `share` of all rows are sent twice, saved up for bursts.
class HedgeBudget {
 public:
  static constexpr double kShare = 0.05;
  static constexpr double kSaved = 4096;  // rows

  void OnRows(uint64_t rows);
  bool Take(uint64_t rows);

 private:
  double left_ = 256;  // so that a young router can hedge at all
};

}  // namespace switchyard::router
