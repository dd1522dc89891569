// Reads the weights of the experts that a worker holds, before it serves them.
#pragma once

#include "absl/status/status.h"
#include "services/checkpoint/progress.h"
#include "services/checkpoint/tensor_source.h"
#include "services/expertwire/frame.h"
#include "services/model/spec.h"

namespace switchyard::worker {

// Reads every byte of what `hello` says is held, which must be mapped; this also brings it into
// memory. DATA_LOSS names the tensor that has a NaN or an infinity. `progress` may be null.
absl::Status CheckHeldWeights(const ModelSpec& spec, const checkpoint::TensorSource& source,
                              const expertwire::pb::Hello& hello,
                              const checkpoint::ProgressFn& progress);

}  // namespace switchyard::worker
