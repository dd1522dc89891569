// Weights as CUDA devices take them: the tiles of services/kernels/cuda/tiles.h, made from a matrix
// as it lies in a checkpoint. Numbers stay what they are; only their places change.
#pragma once

#include <cstddef>
#include <functional>

#include "absl/status/statusor.h"
#include "services/kernels/cuda/tiles.h"
#include "services/tensor/view.h"

namespace switchyard::kernels {

// The tiles that hold `w`: bf16 of either layout; of kOutIn e4m3, int8, int4 (in any packing) and
// e2m1 with scales, Q8_0, Q4_0 and MXFP4. INVALID_ARGUMENT names what is not supported, and why.
absl::StatusOr<cuda::TileShape> TileShapeOf(const WeightView& w);

// Where output `row` of a matrix stands among the tiles' rows.
using RowPlace = std::function<int32_t(int32_t row)>;

// Writes rows of `w`, whose shape is `shape` but for its number of rows, into tiles of it. `tiles`
// has shape.bytes(), all zeros where no row is written.
void PackTiles(const WeightView& w, const cuda::TileShape& shape, const RowPlace& place,
               std::byte* tiles);

}  // namespace switchyard::kernels
