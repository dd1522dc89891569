// Reads the weights of the experts that a worker holds, before it serves them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "services/checkpoint/progress.h"
#include "services/checkpoint/tensor_source.h"
#include "services/expertwire/frame.h"
#include "services/model/spec.h"

namespace switchyard::worker {

// RESOURCE_EXHAUSTED, with both numbers, where the weights do not fit into memory: a worker that
// reads them from disk in every step helps nobody. available: 0 if unknown.
absl::Status CheckMemory(uint64_t weight_bytes, uint64_t available, const std::string& experts);

// Reads every byte of what `hello` says is held, which must be mapped; this also brings it into
// memory. DATA_LOSS names the tensor that has a NaN or an infinity. `progress` may be null.
absl::Status CheckHeldWeights(const ModelSpec& spec, const checkpoint::TensorSource& source,
                              const expertwire::pb::Hello& hello,
                              const checkpoint::ProgressFn& progress);

}  // namespace switchyard::worker
