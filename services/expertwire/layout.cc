#include "services/expertwire/layout.h"

#include <algorithm>

namespace switchyard::expertwire {
namespace {

// Numbers the distinct rows of one group's sums, ascending, from `first`; returns how many there
// are. place: [the largest row + 1] of zeros, and again so afterwards.
uint32_t NumberGroup(std::span<const Segment> segments, std::span<const uint32_t> row_index,
                     uint32_t first, std::span<uint32_t> place, uint32_t* slot) {
  const auto each = [&](auto visit) {
    for (const Segment& s : segments) {
      if (s.result != pb::GROUP_SUMS) continue;
      for (uint32_t i = s.begin; i < s.begin + s.count; ++i) visit(i);
    }
  };
  each([&](uint32_t i) { place[row_index[i]] = 1; });
  uint32_t count = 0;
  for (uint32_t& p : place) {
    const uint32_t here = p;
    p = count;
    count += here;
  }
  each([&](uint32_t i) { slot[i] = first + place[row_index[i]]; });
  std::fill(place.begin(), place.end(), 0);
  return count;
}

}  // namespace

void LayOutAnswer(std::span<const Segment> segments, std::span<const uint32_t> row_index,
                  uint32_t experts_per_group, AnswerLayout* layout) {
  layout->sums = layout->rows = 0;
  layout->slot.resize(row_index.size());
  uint32_t* slot = layout->slot.data();
  const auto last_row = std::max_element(row_index.begin(), row_index.end());
  layout->place.assign(last_row == row_index.end() ? 0 : size_t{*last_row} + 1, 0);
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
          NumberGroup(segments.subspan(i, end - i), row_index, layout->sums, layout->place, slot);
    }
    i = end;
  }
}

}  // namespace switchyard::expertwire
