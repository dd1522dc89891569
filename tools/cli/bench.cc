#include "tools/cli/bench.h"

#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "services/base/file.h"
#include "services/base/status.h"
#include "services/config/build_info.h"
#include "tools/cli/version.h"

namespace switchyard::cli {
namespace {

constexpr const char* kWords[] = {"the",    "train", "of",    "a",     "river", "and",
                                  "stone",  "in",    "north", "with",  "seven", "blue",
                                  "houses", "near",  "old",   "bridge"};

// Made-up text of about the wanted length, as token ids where the server can tokenise.
absl::StatusOr<std::vector<nlohmann::json>> MakePrompts(const BenchOptions& options,
                                                        HttpClient& http) {
  std::vector<nlohmann::json> prompts;
  if (!options.prompts_file.empty()) {
    SY_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.prompts_file, 64 << 20));
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      if (end > begin) prompts.emplace_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
    if (prompts.empty()) return InvalidArgument("{}: no prompt in it", options.prompts_file);
    return prompts;
  }
  std::mt19937_64 random(options.load.seed);
  for (int i = 0; i < std::min(options.load.requests, 64); ++i) {
    std::string text;
    for (int word = 0; word < 2 * options.prompt_tokens; ++word) {
      text += word == 0 ? "" : " ";
      text += kWords[random() % std::size(kWords)];
    }
    std::string answer;
    // "content" is what llama.cpp's server calls it.
    const absl::Status tokenized = http.Post(
        "/tokenize",
        nlohmann::json{{"model", options.load.model}, {"prompt", text}, {"content", text}}.dump(),
        [&answer](std::string_view bytes) {
          answer += bytes;
          return true;
        });
    const auto json = nlohmann::json::parse(answer, nullptr, /*allow_exceptions=*/false);
    if (tokenized.ok() && json.is_object() && json.contains("tokens") &&
        json["tokens"].is_array()) {
      auto ids = json["tokens"].get<std::vector<int32_t>>();
      ids.resize(std::min<size_t>(ids.size(), options.prompt_tokens));
      prompts.emplace_back(ids);
    } else {
      prompts.emplace_back(text.substr(0, text.size() / 2));
    }
  }
  return prompts;
}

nlohmann::ordered_json Labels(std::string_view labels) {
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  while (!labels.empty()) {
    const size_t equals = labels.find("=\"");
    if (equals == std::string_view::npos) break;
    const size_t end = labels.find('"', equals + 2);
    if (end == std::string_view::npos) break;
    out[std::string(labels.substr(0, equals))] = labels.substr(equals + 2, end - equals - 2);
    labels.remove_prefix(std::min(labels.size(), end + 2));  // and the comma
  }
  return out;
}

// The labels of the gateway's switchyard_build_info; null where the server has none.
nlohmann::ordered_json GatewayInfo(HttpClient& http) {
  const auto metrics = http.Get("/metrics");
  if (!metrics.ok()) return nullptr;
  constexpr std::string_view kName = "switchyard_build_info{";
  size_t at = 0;
  while ((at = metrics->find(kName, at)) != std::string::npos) {
    at += kName.size();
    nlohmann::ordered_json one = Labels(metrics->substr(at, metrics->find('}', at) - at));
    if (one.value("service", "") != "gateway") continue;
    one.erase("service");
    return one;
  }
  return nullptr;
}

// `name` of `from` with what that service runs on.
nlohmann::ordered_json RunsOn(const nlohmann::ordered_json& from, const char* name) {
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  if (from.contains(name)) out[name] = from[name];
  if (from.contains("runs_on") && from["runs_on"].is_object()) out.update(from["runs_on"]);
  return out;
}

// Of each router behind the gateway what it runs on, and the same of its workers.
nlohmann::ordered_json RoutersInfo(HttpClient& http) {
  const auto body = http.Get("/admin/experts");
  if (!body.ok()) return nullptr;
  const auto json = nlohmann::ordered_json::parse(*body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("routers")) return nullptr;
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  for (const auto& router : json["routers"]) {
    if (!router.is_object() || !router.contains("workers")) continue;
    nlohmann::ordered_json one = RunsOn(router, "router_id");
    one["workers"] = nlohmann::ordered_json::array();
    for (const auto& worker : router["workers"]) {
      if (worker.is_object()) one["workers"].push_back(RunsOn(worker, "address"));
    }
    out.push_back(std::move(one));
  }
  return out;
}

// What the server's services run on, as far as it tells; other servers tell nothing.
nlohmann::ordered_json ServerInfo(HttpClient& http) {
  return {{"gateway", GatewayInfo(http)}, {"routers", RoutersInfo(http)}};
}

void ShowProgress(const LoadProgress& p, int requests) {
  if (isatty(STDERR_FILENO) == 0) return;
  std::fprintf(stderr, "\r\x1b[K%d/%d done, %d open, %.1f s, %.0f tokens/s", p.done, requests,
               p.open, p.seconds, p.output_tokens / p.seconds);
}

absl::Status WriteJson(const BenchOptions& options, const BenchReport& report,
                       const nlohmann::ordered_json& server) {
  nlohmann::ordered_json json = ToJson(report);
  json["options"] = {{"url", options.load.http.url},
                     {"model", options.load.model},
                     {"concurrency", options.load.streams()},
                     {"rate", options.load.rate},
                     {"prompt_tokens", options.prompt_tokens},
                     {"max_tokens", options.load.max_tokens},
                     {"seed", options.load.seed}};
  json["client"] = {
      {"cpu", CpuModel()}, {"version", config::Version()}, {"commit", config::Commit()}};
  json["server"] = server;
  if (options.json_file == "-") {
    std::cout << json.dump(2) << "\n";
    return absl::OkStatus();
  }
  return WriteFile(options.json_file, json.dump(2) + "\n");
}

}  // namespace

absl::Status RunBench(BenchOptions options) {
  if (options.prompt_tokens < 1 || options.prompt_tokens > 1'000'000) {
    return UsageError("--prompt-tokens is {}; 1 to 1000000", options.prompt_tokens);
  }
  SY_RETURN_IF_ERROR(ReadApiKey(options.load.http));
  HttpClient http(options.load.http);
  if (options.load.model.empty()) {
    SY_ASSIGN_OR_RETURN(const std::string models, http.Get("/v1/models"));
    SY_ASSIGN_OR_RETURN(options.load.model, ServedModel(models));
  }
  SY_ASSIGN_OR_RETURN(const auto prompts, MakePrompts(options, http));
  if (options.warmup > 0) {
    LoadOptions warmup = options.load;
    warmup.requests = options.warmup;
    warmup.rate = 0;
    warmup.max_tokens = std::min(16, warmup.max_tokens);
    SY_RETURN_IF_ERROR(RunLoad(warmup, prompts, [](const LoadProgress&) {}).status());
  }
  const int total = options.load.requests;
  SY_ASSIGN_OR_RETURN(
      const auto records,
      RunLoad(options.load, prompts, [total](const LoadProgress& p) { ShowProgress(p, total); }));
  if (isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r\x1b[K");
  const BenchReport report = MakeReport(records);
  const bool none = report.failed == report.requests;  // then there is nothing to show but why
  if (options.json_file != "-" && !none) std::cout << ToText(report);
  if (!options.json_file.empty()) {
    SY_RETURN_IF_ERROR(WriteJson(options, report, ServerInfo(http)));
  }
  return none ? Unavailable("every request failed: {}", report.first_error) : absl::OkStatus();
}

}  // namespace switchyard::cli
