// `switchyard checksums`: writes down what a checkpoint's bytes are, or whether they still are.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace switchyard::cli {

// Beside the checkpoint, where whoever loads it looks. With `check` compares instead; DATA_LOSS
// names the tensors that are not as they were.
absl::Status RunChecksums(const std::string& model, bool check);

}  // namespace switchyard::cli
