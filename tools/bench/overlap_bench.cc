// overlap_bench MODEL_DIR [STREAMS [THREADS]]: what two micro-batches hide of the time that rows
// travel. A step of STREAMS sequences runs whole and in halves, with rows delayed by so much a MoE
// layer; experts are computed in place. `bound` is what no schedule of two halves can beat: all of
// the computing, or one half's computing with all of its delays.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <vector>

#include "tests/support/decoder_harness.h"

namespace switchyard::test {
namespace {

using Chunk = DecoderHarness::Chunk;
using Clock = std::chrono::steady_clock;

constexpr int kPrompt = 16, kSteps = 20;

struct Streams {
  Streams(DecoderHarness& decoder, int vocab, int count)
      : harness(decoder), sequences(static_cast<size_t>(count)), chunks(sequences.size()) {
    for (int s = 0; s < count; ++s) {
      for (int i = 0; i < kPrompt; ++i) tokens.push_back((i * 7919 + s * 613 + 3) % vocab);
    }
    for (size_t s = 0; s < sequences.size(); ++s) {
      chunks[s] = {.sequence = &sequences[s],
                   .tokens = std::span(tokens).subspan(s * kPrompt, kPrompt)};
    }
    harness.Step(chunks);
    for (Chunk& chunk : chunks) chunk.tokens = chunk.tokens.first(1);
  }

  // The median step of one token each, milliseconds.
  double StepMs() {
    std::vector<double> ms;
    for (int step = 0; step < kSteps; ++step) {
      const Clock::time_point start = Clock::now();
      harness.Step(chunks);
      ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    }
    std::nth_element(ms.begin(), ms.begin() + kSteps / 2, ms.end());
    return ms[kSteps / 2];
  }

  DecoderHarness& harness;
  std::vector<DecoderHarness::Sequence> sequences;
  std::vector<Chunk> chunks;
  std::vector<int32_t> tokens;
};

int Run(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: overlap_bench MODEL_DIR [STREAMS [THREADS]]\n");
    return 2;
  }
  const LoadedModel model(argv[1]);
  const int streams = argc > 2 ? std::max(2, std::atoi(argv[2])) : 32;
  const int threads = argc > 3 ? std::max(1, std::atoi(argv[3])) : 2;
  const auto layers = std::ranges::count_if(model.spec.layers, &LayerSpec::moe);
  std::printf("%d streams, %d threads, %d MoE layers; milliseconds a step\n", streams, threads,
              static_cast<int>(layers));
  double computing = 0;  // of two halves
  for (const int delay : {0, 1, 2, 5}) {
    double ms[2];
    for (const int halves : {1, 2}) {
      DecoderHarness harness(model, {.dtype = DType::kBF16,
                                     .threads = threads,
                                     .micro_batches = halves,
                                     .kv_blocks = 16 * streams});
      Streams running(harness, model.spec.vocab, streams);
      harness.dispatcher().set_delay(absl::Milliseconds(delay));
      ms[halves - 1] = running.StepMs();
    }
    if (delay == 0) computing = ms[1];
    const double wire = static_cast<double>(delay * layers);
    const double bound = std::max(computing, wire + computing / 2);
    std::printf(
        "delay %d ms a layer: whole %7.2f  halves %7.2f  ÷ max(computing, wire) %5.2f  ÷ bound "
        "%5.2f\n",
        delay, ms[0], ms[1], ms[1] / std::max(computing, wire), ms[1] / bound);
  }
  return 0;
}

}  // namespace
}  // namespace switchyard::test

int main(int argc, char** argv) { return switchyard::test::Run(argc, argv); }
