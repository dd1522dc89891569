#include "router/graph/decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/base/text.h"
#include "tests/support/decoder_harness.h"
#include "tests/support/golden.h"

namespace switchyard::test {
namespace {

using router::DecoderOptions;
using Chunk = DecoderHarness::Chunk;
using Sequence = DecoderHarness::Sequence;

const LoadedModel& Model() {
  static const LoadedModel model(LoadGolden("deepseek-v3-tiny").directory);
  return model;
}

const std::vector<int32_t> kTokens = {5, 90, 4, 33, 1200, 77, 8, 640, 11, 2, 19, 356};

TEST(DecoderOptionsTest, ErrorsNameTheField) {
  EXPECT_TRUE(DecoderOptions{}.Validate().ok());
  EXPECT_THAT(ToStd(DecoderOptions{.dtype = DType::kF16}.Validate().message()),
              ::testing::HasSubstr("dtype"));
  EXPECT_THAT(ToStd(DecoderOptions{.max_positions = -1}.Validate().message()),
              ::testing::HasSubstr("max_positions"));
}

TEST(DecoderTest, LostRowsAreReportedAndTheStepGoesOn) {
  DecoderHarness harness(Model(), {});
  harness.dispatcher().LoseRow(2);
  Sequence a, b;
  const Chunk chunks[] = {{.sequence = &a, .tokens = std::span(kTokens).first(2)},
                          {.sequence = &b, .tokens = std::span(kTokens).first(3)}};
  EXPECT_THAT(harness.Step(chunks).lost, ::testing::ElementsAre(0, 0, 1, 0, 0));
  // The next step starts clean.
  harness.dispatcher().LoseRow(-1);
  EXPECT_THAT(harness.Step(Chunk{.sequence = &a, .tokens = std::span(kTokens).first(1)}).lost,
              ::testing::ElementsAre(0));
}

TEST(DecoderTest, LostRowsOfTheSecondMicroBatchKeepTheirPlace) {
  DecoderHarness harness(Model(), {.micro_batches = 2});
  harness.dispatcher().LoseRow(1);  // of each job
  Sequence a, b;
  const Chunk chunks[] = {{.sequence = &a, .tokens = std::span(kTokens).first(2)},
                          {.sequence = &b, .tokens = std::span(kTokens).first(3)}};
  EXPECT_THAT(harness.Step(chunks).lost, ::testing::ElementsAre(0, 1, 0, 1, 0));
}

TEST(DecoderTest, TracesAreOfTheRowsAskedForInEveryMicroBatch) {
  std::vector<std::vector<int32_t>> experts;
  for (int micro_batches : {1, 2}) {
    DecoderHarness harness(Model(), {.micro_batches = micro_batches, .polls_until_done = 1});
    Sequence a, b, c;
    const Chunk chunks[] = {{.sequence = &a, .tokens = std::span(kTokens).first(4), .trace = true},
                            {.sequence = &b, .tokens = std::span(kTokens).first(5)},
                            {.sequence = &c, .tokens = std::span(kTokens).first(3), .trace = true}};
    const router::StepResult& result = harness.Step(chunks);
    // 7 rows, 2 MoE layers, top 4. Sequence c is a prefix of a.
    const size_t row = 2 * 4;
    ASSERT_EQ(result.routed_experts.size(), 7 * row);
    ASSERT_EQ(result.routed_weights.size(), 7 * row);
    const auto begin = result.routed_experts.begin();
    EXPECT_TRUE(std::equal(begin, begin + 3 * row, begin + 4 * row));
    for (size_t i = 0; i + 1 < result.routed_experts.size(); ++i) {
      if (i % 4 == 3) continue;  // the last of a row
      EXPECT_LT(result.routed_experts[i], result.routed_experts[i + 1]);
    }
    experts.push_back(result.routed_experts);
  }
  EXPECT_EQ(experts[0], experts[1]);
}

TEST(DecoderTest, OneSequenceIsNeverCut) {
  DecoderHarness harness(Model(), {.micro_batches = 2, .polls_until_done = 2});
  Sequence a;
  harness.Step(Chunk{.sequence = &a, .tokens = kTokens});
  EXPECT_EQ(harness.dispatcher().most_in_flight(), 1);
}

TEST(DecoderTest, NoLogitsWhereNoneAreAsked) {
  DecoderHarness harness(Model(), {});
  Sequence a;
  const auto& result =
      harness.Step(Chunk{.sequence = &a, .tokens = kTokens, .wanted = Chunk::Logits::kNone});
  EXPECT_EQ(result.lost.size(), kTokens.size());
  EXPECT_TRUE(result.routed_experts.empty());
}

TEST(DecoderTest, ReturnsWhileRowsAreOut) {
  DecoderHarness harness(Model(), {.polls_until_done = 5});
  Sequence a;
  harness.Step(Chunk{.sequence = &a, .tokens = kTokens});
  // Two MoE layers, five polls each before they are done.
  EXPECT_EQ(harness.waits(), 2 * 5);
  EXPECT_EQ(harness.dispatcher().in_flight(), 0);
}

}  // namespace
}  // namespace switchyard::test
