// The fixed tree of the sum, and where in an answer's payload what lies. Both ends of the wire
// compute it here, from the segments of the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "services/expertwire/frame.h"

namespace switchyard::expertwire {

// Changes whenever the order or the rounding of the sum does; part of the numerics id.
inline constexpr int kReductionTreeVersion = 2;

// Payloads start, and fp32 rows after sums start, at multiples of this.
inline constexpr size_t kAlign = 64;
constexpr size_t AlignUp(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Room for an answer's header, beside its rows.
inline constexpr size_t kHeaderRoom = 4096;

struct AnswerLayout {
  uint32_t sums = 0;  // rows of wire dtype, from offset 0
  uint32_t rows = 0;  // rows of fp32, from rows_offset
  // For each entry of the call's row_index: its sum, or its fp32 row.
  std::vector<uint32_t> slot;
  std::vector<uint32_t> place;  // scratch of LayOutAnswer

  size_t rows_offset(uint32_t hidden, DType dtype) const {
    const size_t bytes = size_t{sums} * hidden * SizeOf(dtype);
    return rows > 0 ? AlignUp(bytes) : bytes;
  }
  size_t bytes(uint32_t hidden, DType dtype) const {
    return rows_offset(hidden, dtype) + size_t{rows} * hidden * sizeof(float);
  }
};

// `segments` and `row_index` must be well formed (codec.h checks what comes from outside).
// `layout` is overwritten; its memory is reused.
void LayOutAnswer(std::span<const Segment> segments, std::span<const uint32_t> row_index,
                  uint32_t experts_per_group, AnswerLayout* layout);

}  // namespace switchyard::expertwire
