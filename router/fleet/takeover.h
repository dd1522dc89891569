// Experts that no live worker holds are spread over those that live, so that every router that sees
// the same workers chooses alike without asking: rendezvous hashing (Thaler, Ravishankar 1998),
// weighted by what memory is free. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace switchyard::router {

struct Orphan {
  int layer = 0;
  int expert = 0;
  uint64_t wanted = 0;  // rows that asked for it: the most wanted are loaded first
};

struct Survivor {
  std::string_view name;
  uint64_t free_bytes = 0;
  uint64_t expert_bytes = 1;  // of one expert
  // Cells (by index into the orphans) that it could not load.
  std::vector<bool> refuses;
};

// For each survivor the indices of the orphans that it should take over, most wanted first. Those
// for which nobody has room are spread over all alike: slower is better than gone (a worker reads
// what is beyond its memory as it is used). Those that all refuse are with nobody.
std::vector<std::vector<size_t>> SpreadOrphans(std::span<const Orphan> orphans,
                                               std::span<const Survivor> survivors);

}  // namespace switchyard::router
