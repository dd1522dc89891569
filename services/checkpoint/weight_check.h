// Looks for NaN and infinity in weights, and in their scales, before anything is computed with
// them.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "services/checkpoint/progress.h"
#include "services/checkpoint/tensor_source.h"

namespace switchyard::checkpoint {

// Reads every page of `ranges`, which must be mapped and of a dtype that is computed with.
// DATA_LOSS names the file, the tensor, the element and what it is, or the row whose scale is NaN,
// infinite or zero. `progress` may be null.
absl::Status CheckWeights(const TensorSource& source, const std::vector<TensorRange>& ranges,
                          const ProgressFn& progress);

}  // namespace switchyard::checkpoint
