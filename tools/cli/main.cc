// The `switchyard` command: serve, chat, bench, inspect, checksums, place, quantize, top, version.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <utility>

#include "services/base/status.h"
#include "services/config/help.h"
#include "services/config/knobs.h"
#include "services/config/load.h"
#include "tools/cli/bench.h"
#include "tools/cli/chat.h"
#include "tools/cli/checksums.h"
#include "tools/cli/inspect.h"
#include "tools/cli/place.h"
#include "tools/cli/quantize.h"
#include "tools/cli/serve.h"
#include "tools/cli/top.h"
#include "tools/cli/version.h"

namespace switchyard::cli {
namespace {

// A flag as those of the services look in --help: what stands for its value, and what it is.
template <typename Value>
CLI::Option* Add(CLI::App& app, const std::string& flag, const std::string& stands_for,
                 Value& value, const std::string& help) {
  return app.add_option(flag, value, help)->option_text(stands_for);
}

// The same with the value that it has when it is not given.
template <typename Value>
CLI::Option* AddDefaulted(CLI::App& app, const std::string& flag, const std::string& stands_for,
                          Value& value, const std::string& help) {
  return Add(app, flag, stands_for, value, fmt::format("{} (default {})", help, value));
}

// Who asks, and whom it trusts.
void AddCredentials(CLI::App& app, HttpOptions& http) {
  Add(app, "--api-key", "KEY", http.api_key, "Sent as a bearer token; also OPENAI_API_KEY")
      ->envname("OPENAI_API_KEY");
  Add(app, "--api-key-file", "FILE", http.api_key_file,
      "File whose first key is sent; wins over --api-key");
  Add(app, "--ca", "FILE", http.ca_file, "Certificates (PEM) that the server must be signed by")
      ->check(CLI::ExistingFile);
}

void AddServer(CLI::App& app, HttpOptions& http, std::string& model) {
  http.url = "http://127.0.0.1:8000";
  AddDefaulted(app, "--url", "URL", http.url, "Base URL of the server, or unix:PATH");
  AddCredentials(app, http);
  Add(app, "--model", "NAME", model, "Model to ask; default: the first that the server lists");
}

void AddChat(CLI::App& app, ChatOptions& options) {
  AddServer(app, options.http, options.model);
  Add(app, "--system", "TEXT", options.system, "System message");
  Add(app, "--once", "TEXT", options.once, "Ask this, print the answer and end");
  Add(app, "--temperature", "X", options.temperature, "0 is greedy; default: the model's")
      ->check(CLI::NonNegativeNumber);
  Add(app, "--max-tokens", "N", options.max_tokens,
      "Most tokens of an answer, its reasoning included; 0: the server's default (default 0)")
      ->check(CLI::NonNegativeNumber);
  app.add_flag_callback(
      "--no-reasoning", [&options] { options.show_reasoning = false; }, "Hide the reasoning");
  app.footer(
      "Examples:\n  switchyard chat\n  switchyard chat --once 'What is 37 + 48 - 5?'\n"
      "  switchyard chat --url https://moe.example.com --ca ca.pem --system 'Be brief.'");
}

void AddBench(CLI::App& app, BenchOptions& options) {
  AddServer(app, options.load.http, options.load.model);
  AddDefaulted(app, "--requests", "N", options.load.requests, "Requests in all")
      ->check(CLI::PositiveNumber);
  Add(app, "--concurrency", "N", options.load.concurrency,
      fmt::format("Streams kept open (default {}); with --rate: the most open at once (default "
                  "{}), and the report tells of requests that had to wait for one to end",
                  kStreamsKept, kStreamsMost))
      ->check(CLI::Range(1, kConcurrencyMax));
  AddDefaulted(app, "--rate", "X", options.load.rate,
               "Requests a second, by Poisson arrivals whatever the server does; its times count "
               "from the arrival. 0: a closed loop, each answer's end sends the next")
      ->check(CLI::NonNegativeNumber);
  AddDefaulted(app, "--prompt-tokens", "N", options.prompt_tokens, "Length of made-up prompts")
      ->check(CLI::Range(1, 1'000'000));
  Add(app, "--prompts", "FILE", options.prompts_file, "File of prompts, one a line")
      ->check(CLI::ExistingFile);
  AddDefaulted(app, "--max-tokens", "N", options.load.max_tokens, "Tokens of each answer")
      ->check(CLI::PositiveNumber);
  app.add_flag_callback(
      "--stop-at-eos", [&options] { options.load.ignore_eos = false; },
      "Let answers end by themselves");
  AddDefaulted(app, "--warmup", "N", options.warmup, "Requests before the clock starts");
  AddDefaulted(app, "--seed", "N", options.load.seed, "Of prompts and arrivals");
  Add(app, "--json", "FILE", options.json_file, "Write the report as JSON; - is standard output");
  app.footer(
      "Examples:\n  switchyard bench --concurrency 32 --requests 128 --max-tokens 128\n"
      "  switchyard bench --rate 20 --requests 500 --json report.json");
}

void AddQuantize(CLI::App& app, QuantizeCommand& command) {
  quantize::QuantizeOptions& options = command.options;
  Add(app, "in", "DIR", options.in, "Directory of the model, in bf16, f16 or f32")->required();
  Add(app, "out", "DIR", options.out, "Directory to write; must be new or empty")->required();
  Add(app, "--scheme", "NAME", command.scheme,
      "How weights are kept [int8|int4|int4-awq|fp8]; must be given")
      ->required()
      ->check(CLI::IsMember({"int8", "int4", "int4-awq", "fp8"}));
  Add(app, "--text", "FILE", options.text,
      "File of text like what the model is for: perplexity before and after, and what int4-awq "
      "goes by")
      ->check(CLI::ExistingFile);
  AddDefaulted(app, "--text-tokens", "N", options.text_tokens, "Most tokens of it that are read")
      ->check(CLI::Range(2, 1 << 24));
  AddDefaulted(app, "--group-size", "N", options.group_size,
               "Of int4: numbers that share a scale [0|32|64|128]; 0: the largest of 128, 64 and "
               "32 that fits")
      ->check(CLI::IsMember({0, 32, 64, 128}));
  AddDefaulted(app, "--threads", "N", options.threads, "0: one a core")->check(CLI::Range(0, 4096));
  Add(app, "--json", "FILE", command.json_file, "Write the report as JSON; - is standard output");
  app.footer(
      "Examples:\n  switchyard quantize models/tiny-r1 /tmp/tiny-r1-int8 --scheme int8\n"
      "  switchyard quantize MODEL OUT --scheme int4-awq --text sample.txt");
}

void AddPlace(CLI::App& app, PlaceCommand& command) {
  Add(app, "model", "PATH", command.model, "Directory or .gguf file of the model")->required();
  Add(app, "--url", "URL", command.http.url,
      "Server whose /admin/experts tells load and workers; or unix:PATH");
  AddCredentials(app, command.http);
  Add(app, "--load", "FILE", command.load_file, "What it answered, in a file");
  Add(app, "--since", "FILE", command.since_file,
      "An earlier answer in a file: only rows since then count");
  Add(app, "--worker", "SPEC", command.workers,
      "ADDRESS[,node=NAME][,zone=NAME][,memory=SIZE][,rows=X]; one for each worker. Default: "
      "those of --previous, else those that the server names")
      ->expected(1)
      ->take_all();
  Add(app, "--workers", "FILE", command.workers_file,
      "The same as JSON: [{\"address\", \"node\", \"zone\", \"memory\", \"rows_per_s\"}]");
  Add(app, "--memory", "SIZE", command.memory,
      "For experts, of workers without memory=. Default: what the server says of them");
  Add(app, "--previous", "FILE", command.previous_file,
      "Placement to change as little as possible. Default: what the server says is held");
  AddDefaulted(app, "--extra-memory", "X", command.plan.extra_memory,
               "For replicas, as a part of what one copy of all experts takes: 0.25 is a quarter")
      ->check(CLI::Range(0.0, 1.0 * placement::kWorkersMax));
  AddDefaulted(app, "--min-replicas", "N", command.plan.min_replicas,
               "Of each expert; 2 survive the loss of any one node")
      ->check(CLI::Range(1, placement::kWorkersMax));
  AddDefaulted(app, "--max-experts-per-node", "N", command.plan.max_experts_per_node,
               "Different expert ids on a node; 0: any number")
      ->check(CLI::Range(0, placement::kExpertsMax));
  AddDefaulted(app, "--width", "N", command.width,
               "Workers that a layer lies on; all; or auto: from the next three");
  AddDefaulted(app, "--step-tokens", "N", command.costs.tokens_per_step, "Of a step, for auto")
      ->check(CLI::Range(1, 1 << 20));
  AddDefaulted(app, "--link", "SIZE", command.link, "What a router's link carries a second");
  AddDefaulted(app, "--bandwidth", "SIZE", command.bandwidth, "Of a worker's memory, a second");
  Add(app, "--out", "FILE", command.out_file, "Write the placement; default: standard output");
  Add(app, "--json", "FILE", command.json_file, "Write statistics as JSON; - is standard output");
  app.footer(
      "Examples:\n  switchyard place MODEL --url http://127.0.0.1:8000 --out new.json\n"
      "  switchyard place MODEL --load experts.json --previous old.json --memory 64GiB\n"
      "  switchyard place MODEL --worker 10.0.0.1:7000,node=a,memory=64GiB \\\n"
      "      --worker 10.0.0.2:7000,node=b,memory=32GiB --min-replicas 2 --extra-memory 0");
}

void AddTop(CLI::App& app, TopCommand& command) {
  command.http.url = "http://127.0.0.1:8000";
  AddDefaulted(app, "--url", "URL", command.http.url, "Base URL of the gateway, or unix:PATH");
  AddCredentials(app, command.http);
  AddDefaulted(app, "--interval", "TIME", command.interval, "Between two looks");
  AddDefaulted(app, "--window", "TIME", command.window,
               "What the load of experts and workers is taken over [1s|10s|60s]");
  app.add_flag("--once", command.once, "Print one frame and end");
  app.add_flag("--json", command.json, "Print frames as JSON, one a line");
  app.add_flag_callback(
      "--no-colour", [&command] { command.color = false; }, "ASCII in place of colours");
  app.footer(
      "Examples:\n  switchyard top\n  switchyard top --url https://moe.example.com --ca ca.pem "
      "--api-key-file keys\n  switchyard top --once --json");
}

constexpr int kExitInterrupted = 130;  // what a shell says of a program that Ctrl-C ended

// `command`: "chat".
int Report(const std::string& command, const absl::Status& status) {
  if (status.ok()) return 0;
  if (absl::IsCancelled(status)) return kExitInterrupted;
  return config::ReportError("switchyard " + command, status, config::ExitStatus(status));
}

int RunInspect(const std::string& directory, bool json) {
  const auto report = Inspect(directory);
  if (!report.ok()) return Report("inspect", report.status());
  std::cout << (json ? report->dump(2) + "\n" : InspectText(*report));
  return 0;
}

// Prints what --help and --version ask for; an error names the command it is of.
int ReportParse(const CLI::App& app, const CLI::ParseError& error, const std::string& first) {
  if (error.get_exit_code() == 0) return app.exit(error);
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  if (!first.empty() && first.front() != '-' && std::ranges::count(names, first) == 0) {
    return config::ReportError(
        "switchyard",
        InvalidArgument("unknown command \"{}\"{}", first, config::Suggest(first, names)),
        config::kExitUsage);
  }
  std::string program = "switchyard";
  for (const CLI::App* command : app.get_subcommands()) program += " " + command->get_name();
  return config::ReportError(program, InvalidArgument("{}", error.what()), config::kExitUsage);
}

int Main(int argc, char** argv) {
  // serve's flags come from its config proto, like those of the services it holds.
  if (argc > 1 && std::string_view(argv[1]) == "serve") return RunServe(argc - 1, argv + 1);

  CLI::App app("Serves mixture-of-experts models; see `switchyard COMMAND --help`.", "switchyard");
  config::FormatHelp(app);
  app.require_subcommand(0, 1);
  app.add_subcommand("serve", "Serve a model: gateway, router and expert workers in one process");
  ChatOptions chat;
  CLI::App* chat_app = app.add_subcommand("chat", "Talk to a server in the terminal");
  AddChat(*chat_app, chat);
  BenchOptions bench;
  CLI::App* bench_app = app.add_subcommand("bench", "Measure load and latency of a server");
  AddBench(*bench_app, bench);
  std::string directory;
  bool json = false;
  CLI::App* inspect_app =
      app.add_subcommand("inspect", "Say what a checkpoint is and what it costs");
  Add(*inspect_app, "model", "PATH", directory, "Directory or .gguf file of the model")->required();
  inspect_app->add_flag("--json", json, "As JSON");
  inspect_app->footer("Example:\n  switchyard inspect models/tiny-r1");
  bool check = false;
  CLI::App* checksums_app = app.add_subcommand(
      "checksums", "Write checksums of a checkpoint, which whoever loads it then compares");
  Add(*checksums_app, "model", "PATH", directory, "Directory or .gguf file of the model")
      ->required();
  checksums_app->add_flag("--check", check, "Compare all of it with those that were written");
  checksums_app->footer(
      "Examples:\n  switchyard checksums MODEL\n  switchyard checksums MODEL --check");
  QuantizeCommand quantize;
  CLI::App* quantize_app =
      app.add_subcommand("quantize", "Rewrite a checkpoint with smaller weights");
  AddQuantize(*quantize_app, quantize);
  PlaceCommand place;
  CLI::App* place_app =
      app.add_subcommand("place", "Plan which worker holds which experts, from measured load");
  AddPlace(*place_app, place);
  TopCommand top;
  CLI::App* top_app = app.add_subcommand("top", "Watch a cluster: services, latency, experts");
  AddTop(*top_app, top);
  CLI::App* version_app = app.add_subcommand("version", "Print version, compiler and CPU");
  // Here and not above, as commands inherit what their program has when they are added.
  app.footer(
      "Examples:\n  switchyard serve models/tiny-r1\n  switchyard chat\n"
      "  switchyard inspect models/tiny-r1\n  switchyard bench --concurrency 32");
  app.set_version_flag("--version", "", "Print version, compiler and CPU, and exit");
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForVersion&) {
    std::cout << VersionText();
    return 0;
  } catch (const CLI::ParseError& error) {
    return ReportParse(app, error, argc > 1 ? argv[1] : "");
  }

  if (*chat_app) return Report("chat", RunChat(chat));
  if (*bench_app) return Report("bench", RunBench(bench));
  if (*inspect_app) return RunInspect(directory, json);
  if (*checksums_app) return Report("checksums", RunChecksums(directory, check));
  if (*quantize_app) return Report("quantize", RunQuantize(std::move(quantize)));
  if (*place_app) return Report("place", RunPlace(std::move(place)));
  if (*top_app) return Report("top", RunTop(std::move(top)));
  if (*version_app) {
    std::cout << VersionText();
    return 0;
  }
  return config::ReportError("switchyard", InvalidArgument("a command is missing"),
                             config::kExitUsage);
}

}  // namespace
}  // namespace switchyard::cli

int main(int argc, char** argv) { return switchyard::cli::Main(argc, argv); }
