// A short identity of a checkpoint's contents that any process can compute from a few small reads,
// without mapping or reading all weights: what a worker that holds three experts and a router that
// holds none can compare. It tells checkpoints apart by accident, not by malice.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "services/checkpoint/tensor_source.h"

namespace switchyard::checkpoint {

// 128 bits in hex, over: name, dtype, shape and groups of scales of every tensor; all of each
// vector (norms, biases) of at most 64 KiB; 64 bytes from the middle of up to 4,096 of the other
// tensors, evenly chosen by name; the first 4 KiB of every file's tensors. Does not depend on where
// the checkpoint lies.
absl::StatusOr<std::string> ContentDigest(const TensorSource& source);

}  // namespace switchyard::checkpoint
