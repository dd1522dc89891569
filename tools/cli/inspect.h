// `switchyard inspect`: what a checkpoint is and what it costs to serve, without loading it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

namespace switchyard::cli {

// Reads config, tensor headers and tokenizer of a model directory; no weights.
absl::StatusOr<nlohmann::ordered_json> Inspect(const std::string& directory);

// The same for people.
std::string InspectText(const nlohmann::ordered_json& report);

}  // namespace switchyard::cli
