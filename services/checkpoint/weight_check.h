// Looks for NaN and infinity in weights, and in their scales, and compares them with the
// checkpoint's checksums, before anything is computed with them.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "services/checkpoint/progress.h"
#include "services/checkpoint/tensor_source.h"

namespace switchyard::checkpoint {

// Reads every page of `ranges`, which must be mapped and of a dtype that is computed with, with as
// many threads as cores (up to `most_threads`: memory is not faster for more). `progress` is called
// by the caller's thread alone. DATA_LOSS names the file, the tensor, the element and what it is,
// or the row whose scale is NaN, infinite or zero, or whose checksum is another: of several the
// first. CANCELLED where `progress` wants no more; it may be null.
absl::Status CheckWeights(const TensorSource& source, const std::vector<TensorRange>& ranges,
                          const ProgressFn& progress, int most_threads = 8);

}  // namespace switchyard::checkpoint
