// The `switchyard` command: serve, chat, bench, inspect, quantize, version.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <utility>

#include "services/base/status.h"
#include "services/config/knobs.h"
#include "services/config/load.h"
#include "tools/cli/bench.h"
#include "tools/cli/chat.h"
#include "tools/cli/inspect.h"
#include "tools/cli/quantize.h"
#include "tools/cli/serve.h"
#include "tools/cli/version.h"

namespace switchyard::cli {
namespace {

void AddServer(CLI::App& app, HttpOptions& http, std::string& model) {
  http.url = "http://127.0.0.1:8000";
  app.add_option("--url", http.url, "Base URL of the server, or unix:PATH")->capture_default_str();
  app.add_option("--api-key", http.api_key, "Sent as a bearer token")->envname("OPENAI_API_KEY");
  app.add_option("--ca", http.ca_file, "Certificates (PEM) that the server must be signed by")
      ->check(CLI::ExistingFile);
  app.add_option("--model", model, "Model to ask; default: the first that the server lists");
}

void AddChat(CLI::App& app, ChatOptions& options) {
  AddServer(app, options.http, options.model);
  app.add_option("--system", options.system, "System message");
  app.add_option("--once", options.once, "Ask this, print the answer and end");
  app.add_option("--temperature", options.temperature, "0 is greedy; default: the model's")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--max-tokens", options.max_tokens, "Most tokens of an answer")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("!--no-reasoning", options.show_reasoning, "Hide the reasoning");
  app.footer(
      "Examples:\n  switchyard chat\n  switchyard chat --once 'What is 37 + 48 - 5?'\n"
      "  switchyard chat --url https://moe.example.com --ca ca.pem --system 'Be brief.'");
}

void AddBench(CLI::App& app, BenchOptions& options) {
  AddServer(app, options.load.http, options.load.model);
  app.add_option("--requests", options.load.requests, "Requests in all")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--concurrency", options.load.concurrency,
                 "Streams kept open; with --rate: the most open at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--rate", options.load.rate, "Requests a second, Poisson arrivals; 0: closed loop")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--prompt-tokens", options.prompt_tokens, "Length of made-up prompts")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--prompts", options.prompts_file, "File of prompts, one a line")
      ->check(CLI::ExistingFile);
  app.add_option("--max-tokens", options.load.max_tokens, "Tokens of each answer")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("!--stop-at-eos", options.load.ignore_eos, "Let answers end by themselves");
  app.add_option("--warmup", options.warmup, "Requests before the clock starts")
      ->capture_default_str();
  app.add_option("--seed", options.load.seed, "Of prompts and arrivals")->capture_default_str();
  app.add_option("--json", options.json_file, "Write the report as JSON; - is standard output");
  app.footer(
      "Examples:\n  switchyard bench --concurrency 32 --requests 128 --max-tokens 128\n"
      "  switchyard bench --rate 20 --concurrency 256 --requests 500 --json report.json");
}

void AddQuantize(CLI::App& app, QuantizeCommand& command) {
  quantize::QuantizeOptions& options = command.options;
  app.add_option("in", options.in, "Directory of the model, in bf16, f16 or f32")->required();
  app.add_option("out", options.out, "Directory to write; must be new or empty")->required();
  app.add_option("--scheme", command.scheme, "How weights are kept")
      ->required()
      ->check(CLI::IsMember({"int8", "int4", "int4-awq", "fp8"}));
  app.add_option("--text", options.text,
                 "File of text like what the model is for: perplexity before and after, and what "
                 "int4-awq goes by")
      ->check(CLI::ExistingFile);
  app.add_option("--text-tokens", options.text_tokens, "Most tokens of it that are read")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  app.add_option("--group-size", options.group_size,
                 "Of int4: numbers that share a scale; 0: the largest of 128, 64 and 32 that fits")
      ->check(CLI::IsMember({0, 32, 64, 128}))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "0: one a core")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  app.add_option("--json", command.json_file, "Write the report as JSON; - is standard output");
  app.footer(
      "Examples:\n  switchyard quantize models/tiny-r1 /tmp/tiny-r1-int8 --scheme int8\n"
      "  switchyard quantize MODEL OUT --scheme int4-awq --text sample.txt");
}

// `command`: "chat".
int Report(const std::string& command, const absl::Status& status) {
  if (status.ok()) return 0;
  if (absl::IsCancelled(status)) return kExitInterrupted;
  return config::ReportError("switchyard " + command, status, config::kExitFailure);
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
constexpr int kExitInterrupted = 130;  // what a shell says of a program that Ctrl-C ended

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
  app.require_subcommand(0, 1);
  app.footer(
      "Examples:\n  switchyard serve models/tiny-r1\n  switchyard chat\n"
      "  switchyard inspect models/tiny-r1\n  switchyard bench --concurrency 32");
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
  inspect_app->add_option("model", directory, "Directory or .gguf file of the model")->required();
  inspect_app->add_flag("--json", json, "As JSON");
  inspect_app->footer("Example:\n  switchyard inspect models/tiny-r1");
  QuantizeCommand quantize;
  CLI::App* quantize_app =
      app.add_subcommand("quantize", "Rewrite a checkpoint with smaller weights");
  AddQuantize(*quantize_app, quantize);
  CLI::App* version_app = app.add_subcommand("version", "Print version, compiler and CPU");
  app.set_version_flag("--version", VersionText());
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return ReportParse(app, error, argc > 1 ? argv[1] : "");
  }

  if (*chat_app) return Report("chat", RunChat(chat));
  if (*bench_app) return Report("bench", RunBench(bench));
  if (*inspect_app) return RunInspect(directory, json);
  if (*quantize_app) return Report("quantize", RunQuantize(std::move(quantize)));
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
