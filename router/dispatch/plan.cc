#include "router/dispatch/plan.h"

#include <algorithm>

namespace switchyard::router {
namespace {

using expertwire::Segment;
namespace pb = expertwire::pb;

constexpr uint32_t kNoPart = ~uint32_t{0};

// One planning. First pass: cut the tokens into parts. Second: count pairs by (part, expert,
// result). Third: place them.
class Planner {
 public:
  Planner(const PlanInput& input, std::span<const WantedPair> wanted, DispatchPlan* plan)
      : in_(input), wanted_(wanted), plan_(*plan), first_(plan->part_count) {}

  void Run() {
    plan_.places.assign(wanted_.size(), {});
    plan_.open.assign(in_.max_part_bytes.size(), kNoPart);
    for (size_t begin = 0, end; begin < wanted_.size(); begin = end) {
      end = begin + 1;
      while (end < wanted_.size() && TokenOf(end) == TokenOf(begin)) ++end;
      PlaceToken(begin, end);
    }
    for (uint32_t open : plan_.open) {
      if (open != kNoPart) plan_.parts[open].last = true;
    }
    MakeSegments();
    for (PlannedPart& part : plan_.used().subspan(first_)) {
      LayOutAnswer(part.segments, part.row_index, in_.experts_per_group, &part.layout);
    }
  }

 private:
  uint32_t TokenOf(size_t i) const { return wanted_[i].pair / static_cast<uint32_t>(in_.top_k); }
  uint32_t ExpertOf(size_t i) const { return static_cast<uint32_t>(in_.experts[wanted_[i].pair]); }
  int16_t Owner(size_t i) const { return in_.owner[ExpertOf(i)]; }

  // The end of those from `begin` on, before `end`, that are of one group.
  size_t GroupEnd(size_t begin, size_t end) const {
    const uint32_t group = ExpertOf(begin) / in_.experts_per_group;
    size_t at = begin + 1;
    while (at < end && ExpertOf(at) / in_.experts_per_group == group) ++at;
    return at;
  }

  // Whether one worker may sum them.
  bool Together(size_t begin, size_t end) const {
    for (size_t i = begin; i < end; ++i) {
      if (wanted_[i].rows_only || Owner(i) != Owner(begin)) return false;
    }
    return true;
  }

  bool Homeless(size_t begin, size_t end) const {
    for (size_t i = begin; i < end; ++i) {
      if (Owner(i) == ExpertMap::kNone) return true;
    }
    return false;
  }

  // Bytes of payload that these pairs of a token add to the answer of `link`.
  size_t AnswerBytes(size_t begin, size_t end, int16_t link) const {
    size_t bytes = 0;
    for (size_t group = begin, next; group < end; group = next) {
      next = GroupEnd(group, end);
      if (Homeless(group, next)) continue;
      if (Together(group, next)) {
        if (Owner(group) == link) bytes += in_.hidden * SizeOf(in_.dtype);
        continue;
      }
      for (size_t i = group; i < next; ++i) {
        if (Owner(i) == link) bytes += in_.hidden * sizeof(float);
      }
    }
    return bytes;
  }

  void PlaceToken(size_t begin, size_t end) {
    for (size_t group = begin, next; group < end; group = next) {
      next = GroupEnd(group, end);
      if (Homeless(group, next)) {
        Park(group, next);
        continue;
      }
      const bool sum = Together(group, next);
      for (size_t i = group; i < next; ++i) {
        const uint32_t part = PartFor(begin, end, Owner(i));
        plan_.places[i] = {part, static_cast<uint32_t>(plan_.parts[part].tokens.size() - 1), sum};
      }
    }
  }

  void Park(size_t begin, size_t end) {
    if (parked_ == kNoPart) {
      parked_ = static_cast<uint32_t>(plan_.part_count);
      plan_.AddPart(PlannedPart::kNobody);
    }
    for (size_t i = begin; i < end; ++i) {
      plan_.parts[parked_].parked.push_back(wanted_[i]);
      plan_.places[i].part = kNoPart;
    }
  }

  // The part of `link` that the row of this token (wanted from begin to end) is in; opens the next
  // one where it does not fit.
  uint32_t PartFor(size_t begin, size_t end, int16_t link) {
    const uint32_t token = TokenOf(begin);
    uint32_t& open = plan_.open[static_cast<size_t>(link)];
    if (open != kNoPart && plan_.parts[open].tokens.back() == token) return open;
    const size_t limit = in_.max_part_bytes[static_cast<size_t>(link)];
    const size_t row_bytes = in_.hidden * SizeOf(in_.dtype);
    const size_t answer_bytes = AnswerBytes(begin, end, link);
    if (open != kNoPart) {
      PlannedPart& part = plan_.parts[open];
      if ((part.tokens.size() + 1) * row_bytes <= limit &&
          part.layout.sums + answer_bytes <= limit) {
        part.tokens.push_back(token);
        part.layout.sums += static_cast<uint32_t>(answer_bytes);  // bytes, until it is laid out
        return open;
      }
    }
    open = static_cast<uint32_t>(plan_.part_count);
    PlannedPart& part = plan_.AddPart(link);
    part.tokens.push_back(token);
    part.layout.sums = static_cast<uint32_t>(answer_bytes);
    return open;
  }

  // A counting sort of the pairs by (part, expert, result); tokens ascend by themselves.
  void MakeSegments() {
    const size_t kinds = in_.owner.size() * 2;
    plan_.counts.assign((plan_.part_count - first_) * kinds, 0);
    const auto count_of = [&](size_t i) -> uint32_t& {
      const DispatchPlan::Place& place = plan_.places[i];
      return plan_.counts[(place.part - first_) * kinds + ExpertOf(i) * 2 + (place.sum ? 0 : 1)];
    };
    for (size_t i = 0; i < wanted_.size(); ++i) {
      if (plan_.places[i].part != kNoPart) ++count_of(i);
    }
    for (size_t p = first_; p < plan_.part_count; ++p) {
      CountToSegments(plan_.parts[p], std::span(plan_.counts).subspan((p - first_) * kinds, kinds));
    }
    for (size_t i = 0; i < wanted_.size(); ++i) {
      const DispatchPlan::Place& place = plan_.places[i];
      if (place.part == kNoPart) continue;
      PlannedPart& part = plan_.parts[place.part];
      Segment& segment = part.segments[count_of(i)];
      const uint32_t at = segment.begin + segment.count++;
      part.row_index[at] = place.row;
      part.weights[at] = place.sum ? in_.weights[wanted_[i].pair] : 0.0f;
      part.pairs[at] = wanted_[i].pair;
    }
  }

  // Makes the empty segments of a part and puts their numbers where their counts were.
  static void CountToSegments(PlannedPart& part, std::span<uint32_t> counts) {
    uint32_t begin = 0;
    for (size_t kind = 0; kind < counts.size(); ++kind) {
      if (counts[kind] == 0) continue;
      part.segments.push_back({static_cast<uint32_t>(kind / 2), 0,
                               kind % 2 == 0 ? pb::GROUP_SUMS : pb::ROWS, begin, 0});
      begin += counts[kind];
      counts[kind] = static_cast<uint32_t>(part.segments.size() - 1);
    }
    part.row_index.resize(begin);
    part.weights.resize(begin);
    part.pairs.resize(begin);
  }

  const PlanInput& in_;
  const std::span<const WantedPair> wanted_;
  DispatchPlan& plan_;
  const size_t first_;
  uint32_t parked_ = kNoPart;
};

}  // namespace

PlannedPart& DispatchPlan::AddPart(int link) {
  if (parts.size() == part_count) parts.emplace_back();
  PlannedPart& part = parts[part_count++];
  part.link = link;
  part.last = false;
  part.tokens.clear();
  part.segments.clear();
  part.row_index.clear();
  part.weights.clear();
  part.pairs.clear();
  part.parked.clear();
  return part;
}

void WantAll(const PlanInput& input, std::vector<WantedPair>* wanted) {
  wanted->clear();
  const auto pairs = static_cast<uint32_t>(input.tokens * input.top_k);
  for (uint32_t pair = 0; pair < pairs; ++pair) {
    if (input.experts[pair] != kNoExpert) wanted->push_back({pair, false});
  }
}

void WantAgain(const PlannedPart& part, std::vector<WantedPair>* wanted) {
  wanted->assign(part.parked.begin(), part.parked.end());
  for (const Segment& segment : part.segments) {
    for (uint32_t i = segment.begin; i < segment.begin + segment.count; ++i) {
      wanted->push_back({part.pairs[i], segment.result == pb::ROWS});
    }
  }
  std::sort(wanted->begin(), wanted->end(),
            [](const WantedPair& a, const WantedPair& b) { return a.pair < b.pair; });
}

void PlanPairs(const PlanInput& input, std::span<const WantedPair> wanted, DispatchPlan* plan) {
  Planner(input, wanted, plan).Run();
}

}  // namespace switchyard::router
