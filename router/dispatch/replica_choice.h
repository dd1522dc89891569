// Which replica of each expert a job's rows go to: of two that are drawn the one with less to do,
// where something sets them apart. Experts of one group go together where one worker holds them, so
// that it may sum them. Whom the draw meets changes no result.
//
// Pure; the draw is a function of its seed.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "router/dispatch/expert_map.h"

namespace switchyard::router {

// How gladly a link is used, best first. Of several holders only those of the best standing are
// drawn.
enum class Standing : uint8_t {
  kWell,
  kSuspect,  // ejected, or about to leave
  kNever,    // not up, or tried in vain
};

struct ReplicaInput {
  int layer = 0;
  uint32_t experts_per_group = 1;
  uint64_t seed = 0;
  std::span<const uint32_t> rows;       // [experts]: wanted of each
  std::span<const Standing> standings;  // [links]
  std::span<const uint64_t> busy;       // [links]: rows that are out there
};

// Fills owner [experts]: a link, or kNone where every holder is kNever and where no row is wanted.
// `given` [links] is scratch: the rows that this choice gave each.
void ChooseReplicas(const ExpertMap& map, const ReplicaInput& input, std::vector<uint64_t>* given,
                    std::vector<int16_t>* owner);

}  // namespace switchyard::router
