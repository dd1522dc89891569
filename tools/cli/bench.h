// `switchyard bench`: load and latency of any server that speaks OpenAI's completions.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "tools/cli/load.h"

namespace switchyard::cli {

struct BenchOptions {
  LoadOptions load;
  int prompt_tokens = 64;    // of made-up prompts
  std::string prompts_file;  // one prompt a line; wins over prompt_tokens
  std::string json_file;     // "-": standard output
  int warmup = 2;            // requests before the clock starts
};

absl::Status RunBench(BenchOptions options);

}  // namespace switchyard::cli
