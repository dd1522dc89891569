// What is foreseen of the experts of tiny-r1's next layer, in its forward pass.
#include "router/graph/foresight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "tests/support/heldout_tiny_r1.h"

namespace switchyard::test {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Chunk = DecoderHarness::Chunk;
using Sequence = DecoderHarness::Sequence;
using Hints = std::vector<DirectDispatcher::SaidHint>;

constexpr int kTopK = 4, kMoeLayers = 4;  // layers 1 to 4

const std::vector<Conversation>& Heldout() { return HeldoutOfTinyR1(); }

std::vector<int> LayersOf(const Hints& hints) {
  std::vector<int> layers;
  for (const auto& hint : hints) layers.push_back(hint.layer);
  return layers;
}

TEST(Foresight, MostOfWhatTheNextLayerChoosesIsForeseen) {
  DecoderHarness harness(TinyR1(), {.dtype = DType::kBF16});
  harness.dispatcher().KeepHints();
  std::map<int, double> foreseen;
  double rows = 0;
  for (size_t c = 0; c < 8; ++c) {
    Sequence sequence;
    for (const int32_t token : Heldout()[c].prompt) {
      const auto& result =
          harness.Step(Chunk{&sequence, std::span(&token, 1), Chunk::Logits::kNone, true});
      const Hints hints = harness.dispatcher().TakeHints();
      ASSERT_THAT(LayersOf(hints), ElementsAre(2, 3, 4));
      for (const auto& hint : hints) {
        ASSERT_EQ(hint.experts.size(), static_cast<size_t>(kTopK));
        const auto chosen =
            std::span(result.routed_experts).subspan((hint.layer - 1) * kTopK, kTopK);
        for (const int32_t e : chosen) {
          foreseen[hint.layer] += static_cast<double>(std::ranges::count(hint.experts, e));
        }
      }
      rows += kTopK;
    }
  }
  for (const auto& [layer, all] : foreseen) {
    RecordProperty("layer" + std::to_string(layer), std::to_string(all / rows));
    EXPECT_GT(all / rows, 0.33) << "layer " << layer;  // by chance: 4 / 128
  }
  EXPECT_EQ(foreseen.size(), kMoeLayers - 1u);
}

TEST(Foresight, ChangesNoBit) {
  for (const int micro_batches : {1, 2}) {
    std::vector<float> logits[2];
    for (const bool hints : {false, true}) {
      DecoderHarness harness(TinyR1(), {.dtype = DType::kBF16, .micro_batches = micro_batches});
      if (hints) harness.dispatcher().KeepHints();
      std::vector<Sequence> sequences(5);
      std::vector<Chunk> chunks;
      for (size_t i = 0; i < sequences.size(); ++i) {
        chunks.push_back({.sequence = &sequences[i], .tokens = Heldout()[i].prompt});
      }
      const auto& result = harness.Step(chunks);
      logits[hints].assign(result.logits, result.logits + static_cast<int64_t>(sequences.size()) *
                                                              TinyR1().spec.vocab);
      EXPECT_EQ(harness.dispatcher().TakeHints().empty(), !hints);
    }
    EXPECT_EQ(logits[0], logits[1]) << micro_batches;
  }
}

TEST(Foresight, AnExpertIsSaidOnceAStepAndAgainInTheNext) {
  DecoderHarness harness(TinyR1(),
                         {.dtype = DType::kBF16, .micro_batches = 2, .polls_until_done = 1});
  harness.dispatcher().KeepHints();
  for (int step = 0; step < 2; ++step) {
    // All at the same token: the second half has nothing to add.
    std::vector<Sequence> sequences(12);
    std::vector<Chunk> chunks;
    for (Sequence& sequence : sequences) {
      chunks.push_back({.sequence = &sequence, .tokens = std::span(Heldout()[0].prompt).first(1)});
    }
    harness.Step(chunks);
    EXPECT_EQ(harness.dispatcher().most_in_flight(), 2);
    const Hints hints = harness.dispatcher().TakeHints();
    EXPECT_THAT(LayersOf(hints), ElementsAre(2, 3, 4));
    for (const auto& hint : hints) {
      EXPECT_EQ(std::set(hint.experts.begin(), hint.experts.end()).size(), size_t{kTopK});
    }
  }
}

TEST(Foresight, OfManyRowsTheMostWantedComeFirst) {
  DecoderHarness harness(TinyR1(), {.dtype = DType::kBF16});
  harness.dispatcher().KeepHints();
  // Seven sequences at the same token, one at another: what the seven want comes first.
  const std::span<const int32_t> many = std::span(Heldout()[0].prompt).first(1),
                                 one = std::span(Heldout()[1].prompt).subspan(3, 1);
  ASSERT_NE(many[0], one[0]);
  Sequence alone;
  harness.Step(Chunk{.sequence = &alone, .tokens = many});
  const Hints of_many = harness.dispatcher().TakeHints();
  std::vector<Sequence> sequences(8);
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < 8; ++i)
    chunks.push_back({.sequence = &sequences[i], .tokens = i == 3 ? one : many});
  harness.Step(chunks);
  const Hints hints = harness.dispatcher().TakeHints();
  ASSERT_EQ(hints.size(), of_many.size());
  for (size_t i = 0; i < hints.size(); ++i) {
    ASSERT_GE(hints[i].experts.size(), size_t{kTopK});
    EXPECT_EQ(hints[i].experts[0], of_many[i].experts[0]);
  }
}

TEST(Foresight, NothingIsSaidToWhoDoesNotWantIt) {
  DecoderHarness harness(TinyR1(), {.dtype = DType::kBF16});
  Sequence sequence;
  harness.Step(Chunk{.sequence = &sequence, .tokens = Heldout()[0].prompt});
  EXPECT_THAT(harness.dispatcher().TakeHints(), IsEmpty());
}

}  // namespace
}  // namespace switchyard::test
