// Drives a server with streaming completions and records when tokens came: the engine of
// `switchyard bench`. One thread, libcurl's multi interface, any number of streams.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/cli/bench_stats.h"
#include "tools/cli/http_client.h"

namespace switchyard::cli {

inline constexpr int kStreamsKept = 8;     // by a closed loop
inline constexpr int kStreamsMost = 1024;  // with a rate: arrivals do not wait for answers
inline constexpr int kConcurrencyMax = 4096;

struct LoadOptions {
  HttpOptions http;
  std::string model;
  int requests = 64;
  int concurrency = 0;  // closed loop: streams kept open; with `rate`: the most open at once; 0: as
                        // many as the constants above say
  double rate = 0;      // requests/s of Poisson arrivals; 0: closed loop
  int max_tokens = 128;
  bool ignore_eos = true;  // every answer has max_tokens tokens, so that runs compare
  uint64_t seed = 1;       // of arrivals

  int streams() const {
    return concurrency > 0 ? concurrency : rate > 0 ? kStreamsMost : kStreamsKept;
  }
};

// Called about twice a second.
struct LoadProgress {
  int done = 0, open = 0;
  int64_t output_tokens = 0;
  double seconds = 0;
};

// `prompts` are token ids or texts as JSON values of "prompt", used in turn. With a rate, times
// count from a request's arrival, also where it could not be sent before another ended.
absl::StatusOr<std::vector<RequestRecord>> RunLoad(
    const LoadOptions& options, const std::vector<nlohmann::json>& prompts,
    const std::function<void(const LoadProgress&)>& progress);

}  // namespace switchyard::cli
