#include "router/dispatch/job.h"

#include <utility>

namespace switchyard::router {
namespace {

namespace pb = expertwire::pb;

}  // namespace

void Job::Begin(const MoeJob& job) {
  for (Part& part : parts) part.answer.payload = {};  // back to its pool
  moe = job;
  plan.part_count = 0;
  attempts = 0;
  look_at = absl::InfiniteFuture();
  open_roots_ = 0;
  sources_.assign(static_cast<size_t>(job.tokens * job.top_k), {});
}

void Job::Track(size_t first, int32_t parent) {
  if (parts.size() < plan.part_count) parts.resize(plan.part_count);
  for (size_t p = first; p < plan.part_count; ++p) {
    Part& part = parts[p];
    part.state = plan.parts[p].link == PlannedPart::kNobody ? State::kParked : State::kOpen;
    part.settled = part.again = part.waits = part.given_up = false;
    part.parent = parent;
    part.children = part.depth = part.falls = 0;
    part.waited = absl::ZeroDuration();
    part.look_at = absl::InfiniteFuture();
    if (parent < 0) {
      ++open_roots_;
      continue;
    }
    Part& of = parts[static_cast<size_t>(parent)];
    ++of.children;
    part.depth = of.depth + 1;
    part.falls = of.falls;
    part.waits = of.waits;
    part.waited = of.waited;
  }
  if (parent >= 0) parts[static_cast<size_t>(parent)].again = true;
}

bool Job::Settled(size_t p) const {
  for (int32_t at = static_cast<int32_t>(p); at >= 0; at = parts[static_cast<size_t>(at)].parent) {
    if (parts[static_cast<size_t>(at)].settled) return true;
  }
  return false;
}

void Job::Settle(size_t p) {
  Part& part = parts[p];
  part.settled = true;
  if (part.parent < 0) {
    --open_roots_;
    return;
  }
  Part& parent = parts[static_cast<size_t>(part.parent)];
  if (--parent.children == 0) Settle(static_cast<size_t>(part.parent));
}

// A sum is of use only if all of its segments are OK.
void Job::FindBadSums(const PlannedPart& planned, const expertwire::Answer& answer) {
  bad_sums_.assign(planned.layout.sums, false);
  for (size_t s = 0; s < planned.segments.size(); ++s) {
    const expertwire::Segment& segment = planned.segments[s];
    if (segment.result != pb::GROUP_SUMS || answer.status[s] == pb::OK) continue;
    for (uint32_t i = segment.begin; i < segment.begin + segment.count; ++i) {
      bad_sums_[planned.layout.slot[i]] = true;
    }
  }
}

// Of a group that was answered as one sum all pairs come from that part: whatever came of it
// before, from parts that it was planned for again, is replaced as a whole, and what comes
// afterwards replaces nothing.
bool Job::OnAnswered(size_t p, expertwire::Answer answer) {
  const PlannedPart& planned = plan.parts[p];
  FindBadSums(planned, answer);
  bool whole = true;
  for (uint32_t s = 0; s < planned.segments.size(); ++s) {
    const expertwire::Segment& segment = planned.segments[s];
    const bool sum = segment.result == pb::GROUP_SUMS;
    for (uint32_t i = segment.begin; i < segment.begin + segment.count; ++i) {
      const uint32_t slot = planned.layout.slot[i];
      PairSource& source = sources_[planned.pairs[i]];
      if (sum ? bad_sums_[slot] : answer.status[s] != pb::OK) {
        whole = false;
      } else if (sum || !source.sum) {
        source = {static_cast<int32_t>(p), slot, sum};
      }
    }
  }
  parts[p].answer = std::move(answer);
  if (!whole) {
    OnFailed(p);
    return false;
  }
  parts[p].state = State::kAnswered;
  Settle(p);
  return true;
}

void Job::WantAgain(size_t p, std::vector<WantedPair>* wanted) const {
  router::WantAgain(plan.parts[p], wanted);
  std::erase_if(*wanted, [&](const WantedPair& w) {
    return sources_[w.pair].part == static_cast<int32_t>(p);
  });
}

void Job::OnFailed(size_t p) {
  parts[p].state = State::kFailed;
  parts[p].look_at = look_at = absl::InfinitePast();
}

bool Job::GiveUp(size_t p) {
  for (int32_t at = static_cast<int32_t>(p); at >= 0; at = parts[static_cast<size_t>(at)].parent) {
    const Part& part = parts[static_cast<size_t>(at)];
    if (part.state == State::kOpen && !part.given_up) return false;
  }
  if (parts[p].state != State::kOpen) parts[p].state = State::kFailed;
  Settle(p);
  return true;
}

void Job::GiveUpAll() {
  for (size_t p = 0; p < plan.part_count; ++p) {
    if (parts[p].state == State::kOpen || parts[p].state == State::kParked) {
      parts[p].state = State::kFailed;
    }
  }
  open_roots_ = 0;
}

}  // namespace switchyard::router
