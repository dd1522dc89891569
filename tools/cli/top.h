// `switchyard top`: a live cluster in the terminal, from what its gateway tells.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "tools/cli/http_client.h"

namespace switchyard::cli {

struct TopCommand {
  HttpOptions http;
  std::string interval = "1s";  // between two looks
  std::string window = "10s";   // of the experts' load: 1s, 10s or 60s
  bool once = false;            // prints one frame and ends
  bool json = false;            // prints frames as JSON, one a line
  bool color = true;            // where standard output is a terminal
};

// Ends by itself with `once`, else when it is told to. An answer that does not come is shown and
// asked for again, but for `once`; a request that is refused ends it.
absl::Status RunTop(TopCommand command);

}  // namespace switchyard::cli
