// routing_quality [--speed] MODEL_DIR HELDOUT.json [POLICY…]: what routing policies cost in quality
// and give in speed, next to the model's own gate, as a table in Markdown. Without policies some of
// each kind are measured. Experts are computed in place: no engine, no wire. --speed leaves the
// quality out: of a model of random weights that has the tokenizer of the conversations.
//
//   loss, top-1  of the held-out completions, teacher-forced, 32 conversations a step
//   exact        greedy completions whose answer is the held-out one, 32 at a time
//   experts      of a token in a layer
//   prefill      tokens of 512 at a time, a second of one core, over the gate's
//   decode       tokens of 32 streams, a second of one core, over the gate's. Both: policies take
//                turns, median of 9 rounds; CPU time, so that others on the machine weigh little.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "services/tokenizer/tokenizer.h"
#include "tests/support/decoder_harness.h"
#include "tests/support/heldout.h"

namespace switchyard::test {
namespace {

using Chunk = DecoderHarness::Chunk;

constexpr size_t kStreams = 32;
constexpr int kRounds = 9;
constexpr size_t kPrefill = 512;
constexpr size_t kPrompt = 64, kSteps = 24;

const char* const kPolicies[] = {"cumulative:p=0.9",
                                 "cumulative:p=0.8",
                                 "cumulative:p=0.7",
                                 "cumulative:p=0.5",
                                 "entropy:low=0.5,few=2",
                                 "entropy:low=0.7,few=2",
                                 "entropy:high=0.5,add=next-best",
                                 "entropy:high=0.9,add=0",
                                 "entropy:high=0.9,switch=0",
                                 "capacity:factor=4",
                                 "capacity:factor=2",
                                 "capacity:factor=1.25",
                                 "capacity:factor=1",
                                 "node-limited:max=3",
                                 "node-limited:max=2",
                                 "node-limited:max=1",
                                 "node-limited:max=2,nodes=4",
                                 "node-limited:max=1,nodes=2"};

struct Run {
  router::RoutingOptions policy;
  std::vector<double> prefill, decode;  // tokens/s of each round
};

double CpuSeconds() {
  timespec now;
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double SecondsOf(auto&& body) {
  const double start = CpuSeconds();
  body();
  return CpuSeconds() - start;
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

double PrefillRate(const LoadedModel& model, const HarnessOptions& options,
                   std::span<const int32_t> text) {
  DecoderHarness harness(model, options);
  DecoderHarness::Sequence warm, sequence;
  harness.Step(Chunk{.sequence = &warm, .tokens = text.first(kPrefill)});
  const double seconds = SecondsOf(
      [&] { harness.Step(Chunk{.sequence = &sequence, .tokens = text.first(kPrefill)}); });
  return kPrefill / seconds;
}

double DecodeRate(const LoadedModel& model, const HarnessOptions& options,
                  std::span<const int32_t> text) {
  DecoderHarness harness(model, options);
  std::vector<DecoderHarness::Sequence> sequences(kStreams);
  std::vector<Chunk> chunks;
  const auto tokens = [&](size_t stream, size_t at, size_t count) {
    return text.subspan(stream * (kPrompt + kSteps) + at, count);
  };
  for (size_t i = 0; i < kStreams; ++i) {
    chunks.push_back({.sequence = &sequences[i], .tokens = tokens(i, 0, kPrompt)});
  }
  harness.Step(chunks);
  const double seconds = SecondsOf([&] {
    for (size_t step = 0; step < kSteps; ++step) {
      for (size_t i = 0; i < kStreams; ++i) chunks[i].tokens = tokens(i, kPrompt + step, 1);
      harness.Step(chunks);
    }
  });
  return static_cast<double>(kStreams * kSteps) / seconds;
}

// Of the rounds' own ratios, since the machine may change from round to round.
double Ratio(const std::vector<double>& rates, const std::vector<double>& gate) {
  std::vector<double> ratios;
  for (size_t i = 0; i < rates.size(); ++i) ratios.push_back(rates[i] / gate[i]);
  return Median(ratios);
}

void PrintQuality(const LoadedModel& model, const HarnessOptions& options,
                  const Tokenizer& tokenizer, const std::vector<Conversation>& heldout) {
  const Quality q = MeasureQuality(model, options, heldout, kStreams);
  const double exact = MeasureExact(model, options, heldout, kStreams, tokenizer);
  const double experts = options.routing.gate() ? model.spec.gate.top_k : q.experts();
  std::printf(" %.4f | %.2f %% | %.1f %% | %.2f |", q.loss, 100 * q.top1, 100 * exact, experts);
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "routing_quality: %s\n", std::string(status.message()).c_str());
  return 2;
}

int Measure(const LoadedModel& model, const Tokenizer& tokenizer,
            const std::vector<Conversation>& heldout, bool quality, std::vector<Run>& runs) {
  HarnessOptions options = {.dtype = DType::kBF16};
  std::vector<int32_t> text;
  for (const Conversation& c : heldout) {
    text.insert(text.end(), c.prompt.begin(), c.prompt.end());
    text.insert(text.end(), c.completion.begin(), c.completion.end());
  }
  if (text.size() < std::max(kPrefill, kStreams * (kPrompt + kSteps))) {
    return Fail(absl::InvalidArgumentError("too few held-out tokens"));
  }
  for (int round = 0; round < kRounds; ++round) {
    for (Run& run : runs) {
      options.routing = run.policy;
      run.prefill.push_back(PrefillRate(model, options, text));
      run.decode.push_back(DecodeRate(model, options, text));
    }
  }
  std::printf("gate: %.0f tokens of prefill, %.0f of decode a second of one core, %s\n\n",
              Median(runs[0].prefill), Median(runs[0].decode),
              std::string(kernels::Name(options.isa)).c_str());
  std::printf("%s", quality ? "| policy | loss | top-1 | exact | experts | prefill | decode |\n"
                              "| --- | --- | --- | --- | --- | --- | --- |\n"
                            : "| policy | prefill | decode |\n| --- | --- | --- |\n");
  options.threads = 2;
  for (const Run& run : runs) {
    options.routing = run.policy;
    std::printf("| `%s` |", run.policy.Name().c_str());
    if (quality) PrintQuality(model, options, tokenizer, heldout);
    std::printf(" %.2f | %.2f |\n", Ratio(run.prefill, runs[0].prefill),
                Ratio(run.decode, runs[0].decode));
    std::fflush(stdout);
  }
  return 0;
}

int Main(int argc, char** argv) {
  std::vector<std::string> args(argv + 1, argv + argc);
  const bool quality = std::erase(args, "--speed") == 0;
  if (args.size() < 2) {
    std::fprintf(stderr, "usage: routing_quality [--speed] MODEL_DIR HELDOUT.json [POLICY...]\n");
    return 2;
  }
  const LoadedModel model(args[0]);
  const auto tokenizer = Tokenizer::Load(args[0]);
  if (!tokenizer.ok()) return Fail(tokenizer.status());
  std::vector<Run> runs(1);
  std::vector<std::string> policies(args.begin() + 2, args.end());
  if (policies.empty()) policies.assign(std::begin(kPolicies), std::end(kPolicies));
  for (const std::string& text : policies) {
    const auto policy = config::ParseRoutingPolicy(text);
    if (!policy.ok()) return Fail(policy.status());
    if (const absl::Status fits = router::CheckRouting(*policy, model.spec); !fits.ok())
      return Fail(fits);
    runs.push_back({.policy = *policy});
  }
  return Measure(model, **tokenizer, LoadHeldout(args[1], **tokenizer), quality, runs);
}

}  // namespace
}  // namespace switchyard::test

int main(int argc, char** argv) { return switchyard::test::Main(argc, argv); }
