// A model that may be split over several GGUF files ("name-00001-of-00003.gguf", …).
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/gguf/header.h"

namespace switchyard::gguf {

// The headers of all files of the model that `path` is, or is the first file of; the first holds
// the metadata. A tensor is listed by one of them. Errors as ReadHeader's; NOT_FOUND names a file
// that is missing, INVALID_ARGUMENT one that is not of the series, or a later file given as path.
absl::StatusOr<std::vector<Header>> ReadModel(const std::string& path, WantsList wants = EveryList);

}  // namespace switchyard::gguf
