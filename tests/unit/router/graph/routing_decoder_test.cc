// Routing policies in the forward pass of tiny-r1: what they cost on conversations that it never
// saw, what a step tells of them, and which of them depends on company. That the others do not is
// in decoder_sameness_test.cc. The figures of docs/operating/routing-policies.md are of the same
// conversations, all of them (tools/bench/routing_quality.cc).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/support/heldout_tiny_r1.h"

namespace switchyard::test {
namespace {

using ::testing::ElementsAre;
using Chunk = DecoderHarness::Chunk;
using Sequence = DecoderHarness::Sequence;

// One conversation in six.
const std::vector<Conversation>& Heldout() {
  static const std::vector<Conversation> heldout = [] {
    const std::vector<Conversation>& all = HeldoutOfTinyR1();
    EXPECT_EQ(all.size(), 540u);
    std::vector<Conversation> some;
    for (size_t i = 0; i < all.size(); i += 6) some.push_back(all[i]);
    return some;
  }();
  return heldout;
}

HarnessOptions With(const std::string& policy) {
  const auto options = config::ParseRoutingPolicy(policy);
  EXPECT_TRUE(options.ok()) << options.status();
  EXPECT_TRUE(router::CheckRouting(*options, TinyR1().spec).ok())
      << router::CheckRouting(*options, TinyR1().spec);
  return {.dtype = DType::kBF16, .routing = *options};
}

// Of the gate, over 4006 tokens; what a mistake in a policy adds is many times the tolerance.
constexpr double kGateLoss = 0.01734, kGateTop1 = 0.99675;

TEST(RoutingQuality, OfTheGateInEveryArithmeticClass) {
  for (const kernels::Isa isa : WidestOfEachClass(DType::kBF16)) {
    HarnessOptions options = With("gate");
    options.isa = isa;
    const Quality gate = MeasureQuality(TinyR1(), options, Heldout(), 32);
    EXPECT_EQ(gate.tokens, 4006) << kernels::Name(isa);
    EXPECT_NEAR(gate.loss, kGateLoss, 0.0005) << kernels::Name(isa);
    EXPECT_NEAR(gate.top1, kGateTop1, 0.001) << kernels::Name(isa);
    EXPECT_EQ(gate.counts.rows, 0u);
  }
}

struct Bound {
  const char* policy;
  double loss;     // more than the gate's, at most
  double experts;  // of a token in a layer, within 0.03
  double changed;  // share of rows, within 0.03
};

class RoutingQualityOf : public ::testing::TestWithParam<Bound> {};

TEST_P(RoutingQualityOf, StaysWithinItsBound) {
  const Bound& bound = GetParam();
  const Quality q = MeasureQuality(TinyR1(), With(bound.policy), Heldout(), 32);
  EXPECT_LT(q.loss, kGateLoss + bound.loss);
  EXPECT_GT(q.loss, kGateLoss - 0.002);
  EXPECT_NEAR(q.experts(), bound.experts, 0.03);
  ASSERT_GT(q.counts.rows, 0u);
  const auto rows = static_cast<double>(q.counts.rows);
  EXPECT_NEAR(static_cast<double>(q.counts.changed) / rows, bound.changed, 0.03);
}

INSTANTIATE_TEST_SUITE_P(Policies, RoutingQualityOf,
                         ::testing::Values(Bound{"cumulative:p=0.8", 0.001, 3.61, 0.39},
                                           Bound{"cumulative:p=0.5", 0.02, 2.00, 1.00},
                                           Bound{"entropy:low=0.7,few=2", 0.001, 3.88, 0.06},
                                           Bound{"entropy:high=0.5,add=next-best", 0.001, 4.99,
                                                 0.99},
                                           Bound{"entropy:high=0.9,add=0", 0.001, 4.52, 0.52},
                                           Bound{"entropy:high=0.9,switch=0", 0.2, 2.36, 0.55},
                                           Bound{"capacity:factor=4", 0.001, 4.00, 0.01},
                                           Bound{"capacity:factor=1.25", 0.12, 4.00, 0.55},
                                           Bound{"node-limited:max=2", 0.002, 4.00, 0.95},
                                           Bound{"node-limited:max=1,nodes=2", 0.008, 4.00, 0.84}),
                         [](const auto& info) {
                           std::string name = info.param.policy;
                           std::ranges::replace_if(
                               name, [](unsigned char c) { return !std::isalnum(c); }, '_');
                           return name;
                         });

// Logits of the last prompt token of the first conversation, with or without others in its step.
std::vector<float> LogitsOf(const std::string& policy, size_t others) {
  DecoderHarness harness(TinyR1(), With(policy));
  std::vector<Sequence> sequences(others + 1);
  std::vector<Chunk> chunks;
  for (size_t i = 0; i <= others; ++i) {
    chunks.push_back({.sequence = &sequences[i], .tokens = Heldout()[i].prompt});
  }
  const float* logits = harness.Step(chunks).logits;
  return {logits, logits + TinyR1().spec.vocab};
}

TEST(RoutingDecoder, OnlyCapacityDependsOnCompany) {
  const std::vector<float> gate = LogitsOf("gate", 0);
  for (const char* policy :
       {"cumulative:p=0.5", "entropy:high=0.9,switch=0", "node-limited:max=1"}) {
    EXPECT_EQ(LogitsOf(policy, 0), LogitsOf(policy, 5)) << policy;
    EXPECT_NE(LogitsOf(policy, 0), gate) << policy;
  }
  EXPECT_NE(LogitsOf("capacity:factor=1", 0), LogitsOf("capacity:factor=1", 5));
}

// Traced experts of a prompt; [rows × layers × width].
router::StepResult Traced(DecoderHarness& harness) {
  Sequence sequence;
  return harness.Step(Chunk{.sequence = &sequence, .tokens = Heldout()[0].prompt, .trace = true});
}

TEST(RoutingDecoder, TheTraceHasAPlaceForTheFallback) {
  const size_t rows = Heldout()[0].prompt.size();
  DecoderHarness gate(TinyR1(), With("gate")), fewer(TinyR1(), With("cumulative:p=0.5")),
      more(TinyR1(), With("entropy:high=0,add=9"));
  EXPECT_EQ(gate.decoder().routing_width(), 4);
  EXPECT_EQ(fewer.decoder().routing_width(), 4);
  EXPECT_EQ(more.decoder().routing_width(), 5);
  EXPECT_EQ(Traced(gate).routed_experts.size(), rows * 4 * 4);
  const router::StepResult few = Traced(fewer), many = Traced(more);
  ASSERT_EQ(few.routed_experts.size(), rows * 4 * 4);
  ASSERT_EQ(few.routed_weights.size(), rows * 4 * 4);
  EXPECT_GT(std::ranges::count(few.routed_experts, router::kNoExpert), 0);
  ASSERT_EQ(many.routed_experts.size(), rows * 4 * 5);
  for (size_t row = 0; row < rows * 4; ++row) {
    const auto at = many.routed_experts.begin() + static_cast<ptrdiff_t>(row * 5);
    EXPECT_EQ(std::count(at, at + 5, 9), 1) << "row " << row;
  }
}

// Every place of a row may be empty: then the shared expert is all that a token gets.
TEST(RoutingDecoder, ARowWithoutExpertsIsNotLost) {
  DecoderHarness harness(TinyR1(), With("capacity:factor=0.01"));
  std::vector<int32_t> tokens(200, 300);
  Sequence sequence;
  const router::StepResult result =
      harness.Step(Chunk{.sequence = &sequence, .tokens = tokens, .wanted = Chunk::Logits::kAll});
  EXPECT_GT(harness.decoder().routing()->counts().by_experts[0], 0u);
  EXPECT_EQ(std::ranges::count(result.lost, 1), 0);
  EXPECT_TRUE(std::isfinite(result.logits[199 * TinyR1().spec.vocab]));
}

}  // namespace
}  // namespace switchyard::test
