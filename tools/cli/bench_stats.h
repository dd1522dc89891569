// What `switchyard bench` reports of what it saw.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace switchyard::cli {

struct RequestRecord {
  double start_s = 0;         // since the bench began: when it was sent, or was to be by the rate
  double first_token_s = -1;  // -1: none came
  double end_s = 0;
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  double delay_ms = 0;               // that it was sent late, as no further stream might be open
  std::vector<float> token_gaps_ms;  // between consecutive tokens
  std::string error;                 // empty: finished well
};

struct Distribution {
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};

// Nearest-rank percentiles; all zero for no values. Sorts `values`.
Distribution Summarise(std::vector<float>& values);

struct BenchReport {
  int64_t requests = 0, failed = 0;
  int64_t delayed = 0;  // requests that arrived while as many streams were open as may be
  int64_t prompt_tokens = 0, output_tokens = 0;
  double seconds = 0;  // first start to last end
  Distribution ttft_ms, itl_ms, request_ms;
  Distribution delay_ms;  // of the delayed
  std::string first_error;

  double output_tokens_per_s() const { return seconds > 0 ? output_tokens / seconds : 0; }
  double requests_per_s() const { return seconds > 0 ? (requests - failed) / seconds : 0; }
};

BenchReport MakeReport(const std::vector<RequestRecord>& records);
nlohmann::ordered_json ToJson(const BenchReport& report);
std::string ToText(const BenchReport& report);

}  // namespace switchyard::cli
