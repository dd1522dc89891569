// Turns one layer's routing into what each worker is asked. Pure: the same pairs and owners give
// the same plan, and the sum that follows from it does not depend on the owners.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "router/dispatch/dispatcher.h"
#include "router/dispatch/expert_map.h"
#include "services/expertwire/layout.h"

namespace switchyard::router {

struct PlanInput {
  int64_t tokens = 0;
  int top_k = 0;
  const int32_t* experts = nullptr;  // [tokens, top_k]: as MoeJob has them
  const float* weights = nullptr;    // [tokens, top_k]
  std::span<const int16_t> owner;    // [experts]: link or ExpertMap::kNone
  uint32_t experts_per_group = 1;
  uint32_t hidden = 0;
  DType dtype = DType::kBF16;
  std::span<const size_t> max_part_bytes;  // [links]: of payload, either way; one row always fits
};

// A (token, expert) pair whose result is wanted.
struct WantedPair {
  uint32_t pair = 0;       // token * top_k + k
  bool rows_only = false;  // others of its group came as fp32 rows: a sum would be of no use
};

// One part of a call to one worker; or, with kNobody, pairs that no worker can take now.
struct PlannedPart {
  static constexpr int kNobody = -1;

  int link = kNobody;
  bool last = false;             // of this link, in this planning
  std::vector<uint32_t> tokens;  // of each payload row, ascending
  std::vector<expertwire::Segment> segments;
  std::vector<uint32_t> row_index;
  std::vector<float> weights;
  std::vector<uint32_t> pairs;  // of each entry of row_index
  expertwire::AnswerLayout layout;
  std::vector<WantedPair> parked;  // of nobody's part: all its pairs, ascending
};

// Reused from plan to plan for its memory.
struct DispatchPlan {
  std::vector<PlannedPart> parts;  // the first `part_count` are this plan's
  size_t part_count = 0;

  std::span<PlannedPart> used() { return std::span(parts).first(part_count); }
  std::span<const PlannedPart> used() const { return std::span(parts).first(part_count); }
  // A further part, with the memory of an earlier plan's.
  PlannedPart& AddPart(int link);

  // Scratch of PlanPairs: of each wanted pair its part and the row there; parts by link; counts.
  struct Place {
    uint32_t part = 0, row = 0;
    bool sum = false;
  };
  std::vector<Place> places;
  std::vector<uint32_t> open, counts;
};

// All pairs of a job, ascending, without those of kNoExpert.
void WantAll(const PlanInput& input, std::vector<WantedPair>* wanted);
// The pairs of a part, ascending.
void WantAgain(const PlannedPart& part, std::vector<WantedPair>* wanted);

// Appends parts for the wanted pairs (ascending), by link as they are first met. What lacks an
// owner comes, with all wanted pairs of its token's group, into one further part of nobody's.
void PlanPairs(const PlanInput& input, std::span<const WantedPair> wanted, DispatchPlan* plan);

}  // namespace switchyard::router
