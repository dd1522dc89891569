#include "router/dispatch/plan.h"

#include <algorithm>

namespace switchyard::router {
namespace {

using expertwire::Segment;
namespace pb = expertwire::pb;

constexpr uint32_t kNoPart = ~uint32_t{0};

// One plan in the making. First pass: cut the tokens into parts. Second: count pairs by (part,
// expert, result). Third: place them.
class Planner {
 public:
  Planner(const PlanInput& input, DispatchPlan* plan) : in_(input), plan_(*plan) {}

  void Run() {
    plan_.part_count = 0;
    plan_.sources.assign(static_cast<size_t>(in_.tokens * in_.top_k), PairSource{});
    plan_.open.assign(in_.max_part_bytes.size(), kNoPart);
    for (int64_t token = 0; token < in_.tokens; ++token) PlaceToken(token);
    NumberParts();
    MakeSegments();
    for (PlannedPart& part : plan_.used()) {
      LayOutAnswer(part.segments, part.row_index, in_.experts_per_group, &part.layout);
    }
    for (PairSource& source : plan_.sources) {  // slots are known now
      if (source.part >= 0) source.slot = plan_.parts[source.part].layout.slot[source.slot];
    }
  }

 private:
  int16_t Owner(int64_t token, int k) const {
    return in_.owner[static_cast<size_t>(in_.experts[token * in_.top_k + k])];
  }

  // The end of the token's experts of the group that k is in.
  int GroupEnd(int64_t token, int k) const {
    const int32_t* ids = in_.experts + token * in_.top_k;
    const uint32_t group = static_cast<uint32_t>(ids[k]) / in_.experts_per_group;
    int end = k + 1;
    while (end < in_.top_k && static_cast<uint32_t>(ids[end]) / in_.experts_per_group == group)
      ++end;
    return end;
  }

  // Whether one worker has all of the token's experts from k to end.
  bool Together(int64_t token, int k, int end) const {
    for (int i = k + 1; i < end; ++i) {
      if (Owner(token, i) != Owner(token, k)) return false;
    }
    return true;
  }

  // Bytes of payload that the token adds to the answer of `link`.
  size_t AnswerBytes(int64_t token, int16_t link) const {
    size_t bytes = 0;
    for (int k = 0, end; k < in_.top_k; k = end) {
      end = GroupEnd(token, k);
      if (Together(token, k, end)) {
        if (Owner(token, k) == link) bytes += in_.hidden * SizeOf(in_.dtype);
        continue;
      }
      for (int i = k; i < end; ++i) {
        if (Owner(token, i) == link) bytes += in_.hidden * sizeof(float);
      }
    }
    return bytes;
  }

  void PlaceToken(int64_t token) {
    for (int k = 0; k < in_.top_k; ++k) {
      if (Owner(token, k) == ExpertMap::kNone) return;  // lost: nobody computes any of it
    }
    for (int k = 0, end; k < in_.top_k; k = end) {
      end = GroupEnd(token, k);
      const bool sum = Together(token, k, end);
      for (int i = k; i < end; ++i) {
        PairSource& source = plan_.sources[static_cast<size_t>(token * in_.top_k + i)];
        source.part = static_cast<int32_t>(PartFor(token, Owner(token, i)));
        source.sum = sum;
      }
    }
  }

  // The part of `link` that the token's row is in; opens the next one where it does not fit.
  uint32_t PartFor(int64_t token, int16_t link) {
    uint32_t& open = plan_.open[static_cast<size_t>(link)];
    if (open != kNoPart && plan_.parts[open].tokens.back() == token) return open;
    const size_t limit = in_.max_part_bytes[static_cast<size_t>(link)];
    const size_t row_bytes = in_.hidden * SizeOf(in_.dtype);
    const size_t answer_bytes = AnswerBytes(token, link);
    if (open != kNoPart) {
      PlannedPart& part = plan_.parts[open];
      if ((part.tokens.size() + 1) * row_bytes <= limit &&
          part.layout.sums + answer_bytes <= limit) {
        part.tokens.push_back(static_cast<uint32_t>(token));
        part.layout.sums += static_cast<uint32_t>(answer_bytes);  // bytes, until it is laid out
        return open;
      }
    }
    open = static_cast<uint32_t>(plan_.part_count++);
    if (plan_.parts.size() < plan_.part_count) plan_.parts.emplace_back();
    PlannedPart& part = plan_.parts[open];
    part.link = link;
    part.last = false;
    part.tokens.assign(1, static_cast<uint32_t>(token));
    part.layout.sums = static_cast<uint32_t>(answer_bytes);
    return open;
  }

  void NumberParts() {
    for (uint32_t open : plan_.open) {
      if (open != kNoPart) plan_.parts[open].last = true;
    }
  }

  // A counting sort of the pairs by (part, expert, result); tokens ascend by themselves.
  void MakeSegments() {
    const size_t kinds = in_.owner.size() * 2;
    plan_.counts.assign(plan_.part_count * kinds, 0);
    const size_t pairs = plan_.sources.size();
    const auto key = [&](size_t pair) {
      const PairSource& s = plan_.sources[pair];
      return static_cast<size_t>(s.part) * kinds + static_cast<size_t>(in_.experts[pair]) * 2 +
             (s.sum ? 0 : 1);
    };
    for (size_t pair = 0; pair < pairs; ++pair) {
      if (plan_.sources[pair].part >= 0) ++plan_.counts[key(pair)];
    }
    for (size_t p = 0; p < plan_.part_count; ++p) CountToSegments(p, kinds);
    for (size_t pair = 0; pair < pairs; ++pair) {
      PairSource& s = plan_.sources[pair];
      if (s.part < 0) continue;
      PlannedPart& part = plan_.parts[static_cast<size_t>(s.part)];
      s.segment = plan_.counts[key(pair)];
      Segment& segment = part.segments[s.segment];
      s.slot = segment.begin + segment.count++;  // place in row_index, for now
      part.row_index[s.slot] = RowOf(part, static_cast<uint32_t>(pair) / in_.top_k);
      part.weights[s.slot] = s.sum ? in_.weights[pair] : 0.0f;
    }
  }

  // Makes the empty segments of a part and puts their numbers where their counts were.
  void CountToSegments(size_t p, size_t kinds) {
    PlannedPart& part = plan_.parts[p];
    part.segments.clear();
    uint32_t begin = 0;
    for (size_t kind = 0; kind < kinds; ++kind) {
      uint32_t& count = plan_.counts[p * kinds + kind];
      if (count == 0) continue;
      part.segments.push_back({static_cast<uint32_t>(kind / 2), 0,
                               kind % 2 == 0 ? pb::GROUP_SUMS : pb::ROWS, begin, 0});
      begin += count;
      count = static_cast<uint32_t>(part.segments.size() - 1);
    }
    part.row_index.resize(begin);
    part.weights.resize(begin);
  }

  static uint32_t RowOf(const PlannedPart& part, uint32_t token) {
    const auto at = std::lower_bound(part.tokens.begin(), part.tokens.end(), token);
    return static_cast<uint32_t>(at - part.tokens.begin());
  }

  const PlanInput& in_;
  DispatchPlan& plan_;
};

}  // namespace

void MakePlan(const PlanInput& input, DispatchPlan* plan) { Planner(input, plan).Run(); }

}  // namespace switchyard::router
