// Looks for NaN and infinity in weights before anything is computed with them.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "services/checkpoint/progress.h"
#include "services/checkpoint/tensor_source.h"

namespace switchyard::checkpoint {

// Reads every byte of `ranges`, which must be mapped and of float32, bfloat16 or float16.
// DATA_LOSS names the file, the tensor, the element and what it is. `progress` may be null.
absl::Status CheckWeights(const TensorSource& source, const std::vector<TensorRange>& ranges,
                          const ProgressFn& progress);

}  // namespace switchyard::checkpoint
