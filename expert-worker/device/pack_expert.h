// An expert's weights as a CUDA device takes them: one block of tiles (expert_block.h).
#pragma once

#include <cstddef>

#include "absl/status/statusor.h"
#include "expert-worker/store/expert_store.h"
#include "services/kernels/cuda/abi.h"
#include "services/model/spec.h"

namespace switchyard::worker {

// What experts like this one are computed as. INVALID_ARGUMENT names the matrix that a device does
// not take, and why.
absl::StatusOr<SyCudaFfnSpec> FfnSpecOf(const ModelSpec& model, const ExpertWeights& weights);

// Writes the block, whose bytes are those of `spec`'s ExpertBlock, whatever they were.
void PackExpert(const SyCudaFfnSpec& spec, const ExpertWeights& weights, std::byte* block);

}  // namespace switchyard::worker
