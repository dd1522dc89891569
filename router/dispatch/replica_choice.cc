#include "router/dispatch/replica_choice.h"

#include <algorithm>

#include "services/base/mix.h"

namespace switchyard::router {
namespace {

// A draw that no other step and group has, also where both are small numbers.
uint64_t Mix(uint64_t x) { return MixBits(x + 0x9e3779b97f4a7c15u); }

class Choice {
 public:
  Choice(const ReplicaInput& input, std::vector<uint64_t>& given) : in_(input), given_(given) {}

  // `group_link` is the one that the group's expert before went to, or kNone.
  int16_t Of(std::span<const int16_t> holders, uint64_t draw, int16_t group_link) {
    Standing best = Standing::kNever;
    for (const int16_t link : holders) best = std::min(best, StandingOf(link));
    if (best == Standing::kNever) return ExpertMap::kNone;
    candidates_.clear();
    for (const int16_t link : holders) {
      if (StandingOf(link) != best) continue;
      if (link == group_link) return link;
      candidates_.push_back(link);
    }
    const size_t n = candidates_.size();
    if (n == 1) return candidates_[0];
    // Two different ones: the second is drawn among the others.
    const size_t a = draw % n;
    size_t b = (draw >> 32) % (n - 1);
    if (b >= a) ++b;
    return Busy(candidates_[b]) < Busy(candidates_[a]) ? candidates_[b] : candidates_[a];
  }

 private:
  Standing StandingOf(int16_t link) const { return in_.standings[static_cast<size_t>(link)]; }
  uint64_t Busy(int16_t link) const {
    return in_.busy[static_cast<size_t>(link)] + given_[static_cast<size_t>(link)];
  }

  const ReplicaInput& in_;
  std::vector<uint64_t>& given_;
  ExpertMap::Holders candidates_;
};

}  // namespace

void ChooseReplicas(const ExpertMap& map, const ReplicaInput& input, std::vector<uint64_t>* given,
                    std::vector<int16_t>* owner) {
  given->assign(input.standings.size(), 0);
  owner->assign(input.rows.size(), ExpertMap::kNone);
  Choice choice(input, *given);
  int16_t group_link = ExpertMap::kNone;
  uint32_t group = ~uint32_t{0};
  for (uint32_t e = 0; e < input.rows.size(); ++e) {
    if (input.rows[e] == 0) continue;
    if (e / input.experts_per_group != group) {
      group = e / input.experts_per_group;
      group_link = ExpertMap::kNone;
    }
    const int16_t link = choice.Of(map.holders(input.layer, static_cast<int>(e)),
                                   Mix(input.seed + group), group_link);
    (*owner)[e] = group_link = link;
    if (link != ExpertMap::kNone) (*given)[static_cast<size_t>(link)] += input.rows[e];
  }
}

}  // namespace switchyard::router
