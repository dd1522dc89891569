#include "tools/cli/bench_stats.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace switchyard::cli {
namespace {

nlohmann::ordered_json ToJson(const Distribution& d) {
  return {{"mean", d.mean}, {"p50", d.p50}, {"p90", d.p90}, {"p99", d.p99}, {"max", d.max}};
}

std::string Line(const char* name, const Distribution& d) {
  return fmt::format(
      "{:<22} mean {:8.2f}   p50 {:8.2f}   p90 {:8.2f}   p99 {:8.2f}   max {:8.2f}\n", name, d.mean,
      d.p50, d.p90, d.p99, d.max);
}

}  // namespace

Distribution Summarise(std::vector<float>& values) {
  Distribution out;
  if (values.empty()) return out;
  std::sort(values.begin(), values.end());
  const auto at = [&values](double share) {
    const auto rank = static_cast<size_t>(std::ceil(share * values.size()));
    return values[std::clamp<size_t>(rank, 1, values.size()) - 1];
  };
  double sum = 0;
  for (const float v : values) sum += v;
  out.mean = sum / values.size();
  out.p50 = at(0.50), out.p90 = at(0.90), out.p99 = at(0.99), out.max = values.back();
  return out;
}

BenchReport MakeReport(const std::vector<RequestRecord>& records) {
  BenchReport report;
  std::vector<float> ttft, itl, whole, delays;
  double begin = 1e300, end = 0;
  for (const RequestRecord& record : records) {
    ++report.requests;
    if (record.delay_ms > 0) delays.push_back(static_cast<float>(record.delay_ms));
    if (!record.error.empty()) {
      if (report.failed++ == 0) report.first_error = record.error;
      continue;
    }
    begin = std::min(begin, record.start_s);
    end = std::max(end, record.end_s);
    report.prompt_tokens += record.prompt_tokens;
    report.output_tokens += record.output_tokens;
    if (record.first_token_s >= 0) {
      ttft.push_back(static_cast<float>((record.first_token_s - record.start_s) * 1e3));
    }
    itl.insert(itl.end(), record.token_gaps_ms.begin(), record.token_gaps_ms.end());
    whole.push_back(static_cast<float>((record.end_s - record.start_s) * 1e3));
  }
  report.seconds = std::max(0.0, end - begin);
  report.ttft_ms = Summarise(ttft);
  report.itl_ms = Summarise(itl);
  report.request_ms = Summarise(whole);
  report.delayed = static_cast<int64_t>(delays.size());
  report.delay_ms = Summarise(delays);
  return report;
}

nlohmann::ordered_json ToJson(const BenchReport& report) {
  return {{"requests", report.requests},
          {"failed", report.failed},
          {"first_error", report.first_error},
          {"seconds", report.seconds},
          {"prompt_tokens", report.prompt_tokens},
          {"output_tokens", report.output_tokens},
          {"output_tokens_per_s", report.output_tokens_per_s()},
          {"requests_per_s", report.requests_per_s()},
          {"ttft_ms", ToJson(report.ttft_ms)},
          {"itl_ms", ToJson(report.itl_ms)},
          {"request_ms", ToJson(report.request_ms)},
          {"delayed", report.delayed},
          {"delay_ms", ToJson(report.delay_ms)}};
}

std::string ToText(const BenchReport& report) {
  std::string out = fmt::format(
      "requests               {} ({} failed) in {:.2f} s: {:.2f} /s\n"
      "tokens                 {} in, {} out: {:.1f} out/s\n",
      report.requests, report.failed, report.seconds, report.requests_per_s(), report.prompt_tokens,
      report.output_tokens, report.output_tokens_per_s());
  out += Line("time to first, ms", report.ttft_ms);
  out += Line("between tokens, ms", report.itl_ms);
  out += Line("whole request, ms", report.request_ms);
  if (report.delayed > 0) {
    out += fmt::format(
        "{} requests waited for another to end, as --concurrency allows no more at once; the times "
        "include it\n",
        report.delayed);
    out += Line("so delayed, ms", report.delay_ms);
  }
  if (!report.first_error.empty()) out += "first error: " + report.first_error + "\n";
  return out;
}

}  // namespace switchyard::cli
