// A worker with memory for a third of its experts, and what a router's hints spare it: tiny-r1's
// forward pass over the real dispatcher, link, worker and file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <utility>
#include <vector>

#include "expert-worker/worker.h"
#include "router/dispatch/link_dispatcher.h"
#include "services/expertwire/arithmetic.h"
#include "services/expertwire/handshake.h"
#include "tests/support/decoder_harness.h"
#include "tests/support/heldout_tiny_r1.h"

namespace switchyard::test {
namespace {

using Chunk = DecoderHarness::Chunk;
using Sequence = DecoderHarness::Sequence;

constexpr DType kDtype = DType::kBF16;
constexpr char kFingerprint[] = "tiny-r1";

// Held-out conversations, one after the other, for each stream.
const std::vector<std::vector<int32_t>>& Texts() {
  static const std::vector<std::vector<int32_t>> texts = [] {
    std::vector<std::vector<int32_t>> out(16);
    size_t i = 0;
    for (const Conversation& c : HeldoutOfTinyR1()) {
      std::vector<int32_t>& text = out[i++ % out.size()];
      text.insert(text.end(), c.prompt.begin(), c.prompt.end());
      text.insert(text.end(), c.completion.begin(), c.completion.end());
    }
    return out;
  }();
  return texts;
}

std::unique_ptr<worker::Worker> MakeWorker(uint64_t memory_bytes, kernels::ThreadPool& pool) {
  auto source = checkpoint::OpenCheckpoint(SourcePath("models/tiny-r1"));
  EXPECT_TRUE(source.ok()) << source.status();
  auto made = worker::Worker::Create(TinyR1().spec, kFingerprint, *std::move(source),
                                     {.dtype = kDtype, .memory_bytes = memory_bytes}, &pool);
  EXPECT_TRUE(made.ok()) << made.status();
  return *std::move(made);
}

// A dispatcher that says hints, or keeps them, when the rows that were out have come back, and lets
// the worker follow them before the next go out: what it reads for a hint, and what for the rows
// themselves, does not depend on threads.
class PatientDispatcher : public router::Dispatcher {
 public:
  PatientDispatcher(router::Dispatcher& real, const worker::Worker& worker, bool hints)
      : real_(real), worker_(worker), hints_(hints) {}
  router::MoeTicket Start(const router::MoeJob& job) override {
    before_ = worker_.counters().tiers.promotions;
    return real_.Start(job);
  }
  bool Finished(router::MoeTicket ticket) override {
    if (!real_.Finished(ticket)) return false;
    AwaitRead();
    late_ += worker_.counters().tiers.promotions - before_;
    for (const auto& [layer, experts] : std::exchange(said_, {})) real_.Hint(layer, experts);
    AwaitRead();
    return true;
  }
  void Abandon(router::MoeTicket ticket) override { real_.Abandon(ticket); }
  void Wait(absl::Time until) override { real_.Wait(until); }
  bool WantsHints() const override { return hints_ && real_.WantsHints(); }
  void Hint(int layer, std::span<const int32_t> experts) override {
    said_.emplace_back(layer, std::vector(experts.begin(), experts.end()));
  }
  // Experts that were read when rows for them had come.
  uint64_t late() const { return late_; }

 private:
  void AwaitRead() const {
    const absl::Time bound = absl::Now() + absl::Seconds(60);
    while (worker_.counters().tiers.to_read > 0) {
      ASSERT_LT(absl::Now(), bound);
      std::this_thread::yield();
    }
  }

  router::Dispatcher& real_;
  const worker::Worker& worker_;
  const bool hints_;
  std::vector<std::pair<int, std::vector<int32_t>>> said_;
  uint64_t before_ = 0, late_ = 0;
};

struct Outcome {
  std::vector<float> logits;
  worker::TierCounters tiers;
  uint64_t hints = 0, late = 0;
  uint64_t uses() const { return tiers.hits + tiers.misses; }
};

// `streams` conversations side by side, a token each a step.
Outcome Decode(size_t streams, size_t steps, bool hints) {
  kernels::ThreadPool pool(1);
  const uint64_t all = MakeWorker(0, pool)->mapped_bytes();
  const auto worker = MakeWorker(all / 3, pool);
  EXPECT_TRUE(worker->SettleMemory().ok());
  expertwire::LinkSet links(
      {.hello = expertwire::MakeHello("router", worker->numerics(), {}, false)});
  links.AddLocal("worker", *worker);
  router::LinkDispatcher real(TinyR1().spec, kDtype, links, pool, {});
  PatientDispatcher dispatcher(real, *worker, hints);
  DecoderHarness harness(TinyR1(), {.dtype = kDtype, .instead = &dispatcher});
  const std::vector<std::vector<int32_t>>& texts = Texts();
  std::vector<Sequence> sequences(streams);
  Outcome outcome;
  for (size_t t = 0; t < steps; ++t) {
    std::vector<Chunk> chunks;
    for (size_t s = 0; s < streams; ++s) {
      const std::vector<int32_t>& text = texts[s];
      chunks.push_back({.sequence = &sequences[s], .tokens = std::span(&text[t % text.size()], 1)});
    }
    const router::StepResult& result = harness.Step(chunks);
    outcome.logits.assign(result.logits,
                          result.logits + streams * static_cast<size_t>(TinyR1().spec.vocab));
  }
  outcome.tiers = worker->counters().tiers;
  outcome.hints = real.Links()[0].hints;
  outcome.late = dispatcher.late();
  return outcome;
}

class Prefetch : public ::testing::TestWithParam<size_t> {};

TEST_P(Prefetch, HintsSpareAWorkerMissesAndChangeNoToken) {
  const size_t steps = 100;
  const Outcome without = Decode(GetParam(), steps, false), with = Decode(GetParam(), steps, true);
  EXPECT_EQ(with.logits, without.logits);
  EXPECT_EQ(without.hints, 0u);
  EXPECT_GT(with.hints, steps);
  EXPECT_EQ(with.uses(), without.uses());
  EXPECT_GT(without.late, without.uses() / 5);
  EXPECT_LT(with.late, without.late * 3 / 4);
  EXPECT_GT(with.tiers.prefetched, without.tiers.prefetched);
  RecordProperty("late_without", std::to_string(without.late));
  RecordProperty("late_with", std::to_string(with.late));
  RecordProperty("uses", std::to_string(with.uses()));
}

INSTANTIATE_TEST_SUITE_P(Streams, Prefetch, ::testing::Values(1, 4, 16));

}  // namespace
}  // namespace switchyard::test
