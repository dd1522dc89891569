#include "router/graph/decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "services/base/text.h"
#include "tests/support/decoder_harness.h"
#include "tests/support/golden.h"

namespace switchyard::test {
namespace {

using router::DecoderOptions;
using router::LostExperts;
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

// Rows of a step whose experts of the first MoE layer include one of these.
std::vector<bool> RowsThatNeed(const router::StepResult& traced, int rows, int width,
                               const std::vector<int>& experts) {
  std::vector<bool> need(static_cast<size_t>(rows), false);
  const size_t row_size = traced.routed_experts.size() / static_cast<size_t>(rows);
  for (size_t r = 0; r < need.size(); ++r) {
    for (size_t k = 0; k < static_cast<size_t>(width); ++k) {
      const int32_t e = traced.routed_experts[r * row_size + k];
      need[r] = need[r] || std::ranges::count(experts, e) > 0;
    }
  }
  return need;
}

int FirstMoeLayer() {
  int layer = 0;
  while (!Model().spec.layers[static_cast<size_t>(layer)].moe) ++layer;
  return layer;
}

// One token each of twelve sequences, so that no row sees what became of another.
struct ManyOfOne {
  std::vector<Sequence> sequences = std::vector<Sequence>(kTokens.size());
  std::vector<Chunk> chunks;

  ManyOfOne() {
    for (size_t i = 0; i < kTokens.size(); ++i) {
      chunks.push_back(
          {.sequence = &sequences[i], .tokens = std::span(kTokens).subspan(i, 1), .trace = true});
    }
  }
};

class DecoderWithout : public ::testing::TestWithParam<std::tuple<bool, int>> {};

TEST_P(DecoderWithout, ExpertsThatAreGoneOnlyTheRowsThatNeedThemChange) {
  const auto [known, micro_batches] = GetParam();
  const int rows = static_cast<int>(kTokens.size()), top_k = Model().spec.gate.top_k;
  const auto vocab = static_cast<size_t>(Model().spec.vocab);
  DecoderHarness undisturbed(Model(), {.micro_batches = micro_batches});
  ManyOfOne before;
  const router::StepResult expected = undisturbed.Step(before.chunks);
  const std::vector<float> logits(expected.logits, expected.logits + kTokens.size() * vocab);
  const std::vector<int> gone = {expected.routed_experts[0], expected.routed_experts[1]};
  const std::vector<bool> need = RowsThatNeed(expected, rows, top_k, gone);
  ASSERT_THAT(need, ::testing::Contains(false)) << "all rows need what is lost";
  for (const LostExperts how :
       {LostExperts::kFail, LostExperts::kRenormalise, LostExperts::kNextBest}) {
    DecoderHarness harness(Model(), {.micro_batches = micro_batches, .lost_experts = how});
    harness.dispatcher().LoseExperts(FirstMoeLayer(), gone, known);
    ManyOfOne now;
    const router::StepResult& result = harness.Step(now.chunks);
    const size_t row_size = result.routed_experts.size() / kTokens.size();
    for (size_t r = 0; r < kTokens.size(); ++r) {
      const std::span<const float> row(result.logits + r * vocab, vocab);
      const bool same = std::ranges::equal(row, std::span(logits).subspan(r * vocab, vocab));
      const bool fails = how == LostExperts::kFail && need[r];
      EXPECT_EQ(same, !need[r]) << Name(how) << ", row " << r;
      EXPECT_EQ(result.lost[r], fails) << Name(how) << ", row " << r;
      EXPECT_EQ(result.degraded[r], need[r] ? static_cast<uint8_t>(how) : 0) << Name(how);
      if (!need[r] || fails) continue;
      // The trace is of the experts that computed it.
      const std::span<const int32_t> ids(result.routed_experts.data() + r * row_size,
                                         static_cast<size_t>(top_k));
      for (const int e : gone) EXPECT_THAT(ids, ::testing::Not(::testing::Contains(e)));
      const bool whole = std::ranges::count(ids, router::kNoExpert) == 0;
      EXPECT_EQ(whole, how == LostExperts::kNextBest) << Name(how) << ", row " << r;
    }
    EXPECT_EQ(harness.dispatcher().in_flight(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(KnownBeforeOrByALostRow, DecoderWithout,
                         ::testing::Combine(::testing::Bool(), ::testing::Values(1, 2)));

TEST(DecoderTest, WithoutAnyExpertARowHasTheRest) {
  std::vector<int> all;
  for (int e = 0; e < Model().spec.experts.count; ++e) all.push_back(e);
  for (const LostExperts how : {LostExperts::kRenormalise, LostExperts::kNextBest}) {
    DecoderHarness harness(Model(), {.lost_experts = how});
    harness.dispatcher().LoseExperts(FirstMoeLayer(), all, false);
    Sequence a;
    const router::StepResult& result =
        harness.Step(Chunk{.sequence = &a, .tokens = std::span(kTokens).first(3)});
    EXPECT_THAT(result.lost, ::testing::Each(0));
    EXPECT_THAT(result.degraded, ::testing::Each(static_cast<uint8_t>(how)));
    EXPECT_TRUE(std::isfinite(result.logits[0]));
  }
}

// What is lost for another reason is sent again once, and lost.
TEST(DecoderTest, ARowThatIsLostTwiceIsLost) {
  DecoderHarness harness(Model(), {.lost_experts = LostExperts::kNextBest});
  harness.dispatcher().LoseRow(0);
  Sequence a;
  const router::StepResult& result =
      harness.Step(Chunk{.sequence = &a, .tokens = std::span(kTokens).first(2)});
  EXPECT_THAT(result.lost, ::testing::ElementsAre(1, 0));
  EXPECT_THAT(result.degraded, ::testing::Each(0));
}

}  // namespace
}  // namespace switchyard::test
