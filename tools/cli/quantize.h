// `switchyard quantize`: rewrites a checkpoint and says what that cost.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "tools/quantize/quantize.h"

namespace switchyard::cli {

struct QuantizeCommand {
  quantize::QuantizeOptions options;
  std::string scheme;
  std::string json_file;  // the report as JSON; empty: none, "-": standard output instead of text
};

absl::Status RunQuantize(QuantizeCommand command);

}  // namespace switchyard::cli
