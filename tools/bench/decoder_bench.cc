// decoder_bench MODEL_DIR [THREADS [ISA [1|32|prefill]]]: tokens a second of the forward pass
// alone, with experts computed in place: no engine, no sampling, no wire. Each figure is the best
// of several rounds.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "tests/support/decoder_harness.h"

namespace switchyard::test {
namespace {

using Chunk = DecoderHarness::Chunk;
using Clock = std::chrono::steady_clock;

constexpr int kRounds = 5;
constexpr int kPrompt = 64;

// Streams differ, so that their rows go to different experts.
std::vector<int32_t> Tokens(int vocab, int length, int stream = 0) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < length; ++i) tokens.push_back((i * 7919 + stream * 613 + 3) % vocab);
  return tokens;
}

double SecondsOf(auto&& body) {
  const Clock::time_point start = Clock::now();
  body();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// `streams` sequences of kPrompt tokens, then `steps` steps of one token each.
double DecodeRate(const LoadedModel& model, const HarnessOptions& options, int streams, int steps) {
  DecoderHarness harness(model, options);
  std::vector<DecoderHarness::Sequence> sequences(static_cast<size_t>(streams));
  std::vector<std::vector<int32_t>> tokens;
  std::vector<Chunk> chunks;
  for (int i = 0; i < streams; ++i) {
    tokens.push_back(Tokens(model.spec.vocab, kPrompt + kRounds * steps, i));
    chunks.push_back({.sequence = &sequences[static_cast<size_t>(i)],
                      .tokens = std::span(tokens.back()).first(kPrompt)});
  }
  harness.Step(chunks);
  const auto decode = [&](int position) {
    for (size_t i = 0; i < chunks.size(); ++i) {
      chunks[i].tokens = std::span(tokens[i]).subspan(static_cast<size_t>(position), 1);
    }
    harness.Step(chunks);
  };
  double best = 0;
  int position = kPrompt;
  for (int round = 0; round < kRounds; ++round) {
    const double seconds = SecondsOf([&] {
      for (int step = 0; step < steps; ++step) decode(position++);
    });
    best = std::max(best, streams * steps / seconds);
  }
  return best;
}

double PrefillRate(const LoadedModel& model, const HarnessOptions& options, int length) {
  DecoderHarness harness(model, options);
  const std::vector<int32_t> prompt = Tokens(model.spec.vocab, length);
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    DecoderHarness::Sequence sequence;
    const double seconds =
        SecondsOf([&] { harness.Step(Chunk{.sequence = &sequence, .tokens = prompt}); });
    best = std::max(best, length / seconds);
  }
  return best;
}

int Run(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: decoder_bench MODEL_DIR [THREADS [ISA [1|32|prefill]]]\n");
    return 2;
  }
  const std::string only = argc > 4 ? argv[4] : "";
  if (!only.empty() && only != "1" && only != "32" && only != "prefill") {
    std::fprintf(stderr, "decoder_bench: \"%s\": expected 1, 32 or prefill\n", only.c_str());
    return 2;
  }
  const LoadedModel model(argv[1]);
  const absl::StatusOr<kernels::Isa> isa = kernels::ChooseIsa(argc > 3 ? argv[3] : "auto");
  if (!isa.ok()) {
    std::fprintf(stderr, "decoder_bench: %s\n", std::string(isa.status().message()).c_str());
    return 2;
  }
  const HarnessOptions options = {.dtype = DType::kBF16,
                                  .isa = *isa,
                                  .threads = argc > 2 ? std::max(1, std::atoi(argv[2])) : 2};
  std::printf("%s, %d threads, bfloat16\n", std::string(kernels::Name(options.isa)).c_str(),
              options.threads);
  if (only.empty() || only == "1") {
    std::printf("decode, 1 stream    %9.1f tokens/s\n", DecodeRate(model, options, 1, 60));
  }
  if (only.empty() || only == "32") {
    std::printf("decode, 32 streams  %9.1f tokens/s\n", DecodeRate(model, options, 32, 20));
  }
  if (only.empty() || only == "prefill") {
    std::printf("prefill of 512      %9.1f tokens/s\n", PrefillRate(model, options, 512));
  }
  return 0;
}

}  // namespace
}  // namespace switchyard::test

int main(int argc, char** argv) { return switchyard::test::Run(argc, argv); }
