// `switchyard place`: from measured load, workers and a model to a placement document.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "services/placement/planner.h"
#include "tools/cli/http_client.h"

namespace switchyard::cli {

struct PlaceCommand {
  std::string model;
  HttpOptions http;        // the server that is asked for its load; empty url: none
  std::string load_file;   // what it answered, in a file
  std::string since_file;  // an earlier answer: only what came since counts
  std::vector<std::string> workers;
  std::string workers_file;
  std::string memory;  // of workers that do not say
  std::string previous_file;
  placement::PlanOptions plan;
  std::string width = "all";  // "auto" or a number
  placement::WidthCosts costs;
  std::string link = "1.25GB", bandwidth = "50GB";  // a second, for `costs`
  std::string out_file;
  std::string json_file;
};

// The placement to out_file or standard output, a summary to standard error.
absl::Status RunPlace(PlaceCommand command);

}  // namespace switchyard::cli
