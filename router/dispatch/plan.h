// Turns one layer's routing into what each worker is asked. Pure: the same routing and map give the
// same plan, and the sum that follows from it does not depend on the map.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "router/dispatch/expert_map.h"
#include "services/expertwire/layout.h"

namespace switchyard::router {

struct PlanInput {
  int64_t tokens = 0;
  int top_k = 0;
  const int32_t* experts = nullptr;  // [tokens, top_k], ascending in each row
  const float* weights = nullptr;    // [tokens, top_k]
  std::span<const int16_t> owner;    // [experts]: link or ExpertMap::kNone
  uint32_t experts_per_group = 1;
  uint32_t hidden = 0;
  DType dtype = DType::kBF16;
  std::span<const size_t> max_part_bytes;  // [links]: of payload, either way; one row always fits
};

// One part of a call to one worker.
struct PlannedPart {
  int link = 0;
  bool last = false;             // of this link
  std::vector<uint32_t> tokens;  // of each payload row, ascending
  std::vector<expertwire::Segment> segments;
  std::vector<uint32_t> row_index;
  std::vector<float> weights;
  expertwire::AnswerLayout layout;
};

// Where the result of a (token, expert) pair will be.
struct PairSource {
  int32_t part = -1;     // index into parts; -1: no live worker for some expert of this token
  uint32_t segment = 0;  // of that part
  uint32_t slot = 0;     // the group's sum, or the pair's fp32 row
  bool sum = false;
};

// Reused from plan to plan for its memory.
struct DispatchPlan {
  std::vector<PlannedPart> parts;  // the first `part_count` are this plan's, by link
  size_t part_count = 0;
  std::vector<PairSource> sources;  // [tokens, top_k]

  std::span<PlannedPart> used() { return std::span(parts).first(part_count); }
  std::span<const PlannedPart> used() const { return std::span(parts).first(part_count); }

  // Scratch of MakePlan.
  std::vector<uint32_t> open, counts;
};

void MakePlan(const PlanInput& input, DispatchPlan* plan);

}  // namespace switchyard::router
