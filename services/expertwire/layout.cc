#include "services/expertwire/layout.h"

#include <algorithm>

namespace switchyard::expertwire {
namespace {

// Numbers the distinct rows of one group's sums, ascending, from `first`; returns how many there
// are.
uint32_t NumberGroup(std::span<const Segment> segments, std::span<const uint32_t> row_index,
                     uint32_t first, std::vector<uint32_t>* distinct, uint32_t* slot) {
  distinct->clear();
  for (const Segment& s : segments) {
    if (s.result != pb::GROUP_SUMS) continue;
    const auto rows = row_index.subspan(s.begin, s.count);
    distinct->insert(distinct->end(), rows.begin(), rows.end());
  }
  std::sort(distinct->begin(), distinct->end());
  distinct->erase(std::unique(distinct->begin(), distinct->end()), distinct->end());
  for (const Segment& s : segments) {
    if (s.result != pb::GROUP_SUMS) continue;
    auto at = distinct->begin();  // a segment's rows ascend: one walk
    for (uint32_t i = s.begin; i < s.begin + s.count; ++i) {
      at = std::lower_bound(at, distinct->end(), row_index[i]);
      slot[i] = first + static_cast<uint32_t>(at - distinct->begin());
    }
  }
  return static_cast<uint32_t>(distinct->size());
}

}  // namespace

void LayOutAnswer(std::span<const Segment> segments, std::span<const uint32_t> row_index,
                  uint32_t experts_per_group, AnswerLayout* layout) {
  layout->sums = layout->rows = 0;
  layout->slot.resize(row_index.size());
  uint32_t* slot = layout->slot.data();
  std::vector<uint32_t> distinct;
  for (size_t i = 0; i < segments.size();) {
    const uint32_t group = segments[i].expert / experts_per_group;
    size_t end = i + 1, sum_segments = segments[i].result == pb::GROUP_SUMS;
    for (; end < segments.size() && segments[end].expert / experts_per_group == group; ++end) {
      sum_segments += segments[end].result == pb::GROUP_SUMS;
    }
    for (size_t k = i; k < end; ++k) {
      const Segment& s = segments[k];
      const bool alone = s.result == pb::GROUP_SUMS && sum_segments == 1;
      if (s.result == pb::ROWS || alone) {  // consecutive slots in the segment's order
        uint32_t& next = alone ? layout->sums : layout->rows;
        for (uint32_t r = 0; r < s.count; ++r) slot[s.begin + r] = next++;
      }
    }
    if (sum_segments > 1) {
      layout->sums +=
          NumberGroup(segments.subspan(i, end - i), row_index, layout->sums, &distinct, slot);
    }
    i = end;
  }
}

}  // namespace switchyard::expertwire
