// The way of one MoE job through its parts. A part that failed, or that is late, is planned again
// onto other workers, as its children; it is settled by its own answer or by all of its children,
// whichever comes first. So a retry and a hedge are one thing, and may nest.
//
// Bookkeeping alone: no links, no clock. Driven by the engine thread.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "router/dispatch/dispatcher.h"
#include "router/dispatch/plan.h"
#include "services/expertwire/frame.h"

namespace switchyard::router {

// Where the result of a (token, expert) pair is.
struct PairSource {
  int32_t part = -1;  // index into the job's parts; -1: nowhere
  uint32_t slot = 0;  // in its answer: the group's sum, or the pair's fp32 row
  bool sum = false;
};

class Job {
 public:
  enum class State : uint8_t {
    kOpen,      // sent, not answered yet
    kAnswered,  // its rows are here
    kFailed,    // will not be answered, or not usefully
    kParked,    // of nobody's: waits for a worker
  };
  struct Part {
    State state = State::kOpen;
    bool settled = false;   // by itself; see Settled
    bool again = false;     // was planned again
    bool given_up = false;  // still open, but nobody counts on it
    int32_t parent = -1;    // the part that it is planned for again
    uint32_t children = 0;  // not settled
    // Of it and those that it is planned for again: plannings, and streams that broke while it was
    // out; how long its pairs were parked before.
    uint32_t depth = 0, falls = 0;
    bool waits = false;  // was parked
    absl::Duration waited;
    uint32_t attempt = 0;
    uint64_t generation = 0;                      // of the link when it was sent
    uint64_t probe = 0;                           // of the link, that it is of; 0: none
    absl::Time since;                             // it is out, or parked
    absl::Time late_at;                           // from then on it may be hedged
    absl::Time stuck_at;                          // from then on nobody counts on it
    absl::Time look_at = absl::InfiniteFuture();  // something may have to be done about it
    expertwire::Answer answer;
  };

  // Forgets what was; keeps the memory.
  void Begin(const MoeJob& moe);

  // Takes the plan's parts from `first` on as its own, children of `parent` where it is not -1.
  void Track(size_t first, int32_t parent);

  // Takes what is OK of an answer that fits the plan. Whether that was all; otherwise it has
  // failed.
  bool OnAnswered(size_t p, expertwire::Answer answer);
  void OnFailed(size_t p);
  // Its pairs are lost, unless a part that it was planned for is still out; whether they are. One
  // that is out itself stays so, for whoever has to be told.
  bool GiveUp(size_t p);
  // Whatever is not here yet is lost.
  void GiveUpAll();
  // The pairs of a part that are to be planned again, ascending.
  void WantAgain(size_t p, std::vector<WantedPair>* wanted) const;

  // Whether nothing more is wanted of it: it, or one that it was planned for, is settled.
  bool Settled(size_t p) const;
  bool done() const { return open_roots_ == 0; }

  const PairSource& source(int64_t pair) const { return sources_[static_cast<size_t>(pair)]; }

  MoeJob moe;
  DispatchPlan plan;
  std::vector<Part> parts;                      // the first plan.part_count are this job's
  uint32_t attempts = 0;                        // plannings so far
  absl::Time look_at = absl::InfiniteFuture();  // the earliest of the parts'

 private:
  void Settle(size_t p);
  void FindBadSums(const PlannedPart& planned, const expertwire::Answer& answer);

  std::vector<PairSource> sources_;  // [tokens, top_k]
  size_t open_roots_ = 0;
  std::vector<bool> bad_sums_;  // scratch
};

}  // namespace switchyard::router
