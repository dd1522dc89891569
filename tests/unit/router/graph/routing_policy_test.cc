#include "router/graph/routing_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "router/dispatch/dispatcher.h"
#include "tests/support/gate_specs.h"

namespace switchyard::router {
namespace {

using ::switchyard::testing::V2;
using ::switchyard::testing::V3;
using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::FloatNear;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using Matrix = std::vector<std::vector<float>>;

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

struct Result {
  std::vector<Choice> rows;
  RoutingCounts counts;
  const Choice& operator[](size_t i) const { return rows[i]; }
};

ModelSpec SpecOf(const GateSpec& gate, size_t experts) {
  ModelSpec spec;
  spec.gate = gate;
  spec.experts.count = static_cast<int>(experts);
  return spec;
}

// What MoeLayer does with a micro-batch of these logits.
Result Route(const GateSpec& gate, const std::string& text, const Matrix& logits) {
  const size_t experts = logits[0].size();
  const ModelSpec spec = SpecOf(gate, experts);
  const auto options = config::ParseRoutingPolicy(text);
  EXPECT_TRUE(options.ok()) << options.status();
  RoutingPolicy policy(*options, spec);
  const std::vector<float> bias(gate.correction_bias ? experts : 0);
  const size_t stride =
      experts + static_cast<size_t>(GateScratch(gate, spec.experts.count) + policy.scratch());
  const size_t width = static_cast<size_t>(policy.width());
  std::vector<float> scores(logits.size() * stride), weights(logits.size() * width, -1);
  std::vector<int32_t> ids(logits.size() * width, -7);
  Result out;
  for (size_t r = 0; r < logits.size(); ++r) {
    float* row = scores.data() + r * stride;
    std::ranges::copy(logits[r], row);
    policy.Select({row, experts}, bias, row + experts, &ids[r * width], &weights[r * width],
                  &out.counts);
  }
  if (options->depends_on_batch()) {
    policy.LimitLoads(static_cast<int64_t>(logits.size()), scores.data(),
                      static_cast<int64_t>(stride), !bias.empty(), ids.data(), weights.data(),
                      &out.counts);
  }
  for (size_t r = 0; r < logits.size(); ++r) {
    const auto at = static_cast<ptrdiff_t>(r * width);
    const auto end = at + static_cast<ptrdiff_t>(width);
    out.rows.push_back(
        {{ids.begin() + at, ids.begin() + end}, {weights.begin() + at, weights.begin() + end}});
  }
  return out;
}

Choice Route(const GateSpec& gate, const std::string& text, const std::vector<float>& logits) {
  return Route(gate, text, Matrix{logits})[0];
}

// Qwen3's and Mixtral's, OLMoE's, gpt-oss'.
GateSpec Softmax(int top_k) {
  return {.score = GateScore::kSoftmax, .top_k = top_k, .normalise = true};
}
GateSpec Plain(int top_k) { return {.score = GateScore::kSoftmax, .top_k = top_k}; }
GateSpec AfterTopK(int top_k) { return {.score = GateScore::kSoftmaxAfterTopK, .top_k = top_k}; }
const GateSpec kFamilies[] = {Softmax(3), Plain(3), AfterTopK(3), V3(4, 2, 3), V2(4, 2, 3)};

// Logits of 12 experts.
Matrix Noise(int rows, uint32_t seed) {
  Matrix out;
  for (int r = 0; r < rows; ++r) {
    out.emplace_back();
    for (int e = 0; e < 12; ++e) {
      seed = seed * 1664525u + 1013904223u;
      out.back().push_back(static_cast<float>(seed >> 8) / 2e6f - 4);
    }
  }
  return out;
}

// Softmax probabilities as logits: shares of a softmax gate's weights.
std::vector<float> Shares(std::vector<float> shares) {
  for (float& share : shares) share = std::log(share);
  return shares;
}

bool SameBits(const Choice& a, const Choice& b) {
  return a.ids == b.ids &&
         std::memcmp(a.weights.data(), b.weights.data(), a.weights.size() * sizeof(float)) == 0;
}

// Ascending ids, then kNoExpert; weights there are 0.
void ExpectWellFormed(const Choice& c, int experts) {
  size_t count = 0;
  while (count < c.ids.size() && c.ids[count] != kNoExpert) ++count;
  for (size_t i = 0; i < c.ids.size(); ++i) {
    if (i >= count) {
      EXPECT_EQ(c.ids[i], kNoExpert);
      EXPECT_EQ(c.weights[i], 0.0f);
      continue;
    }
    EXPECT_GE(c.ids[i], i == 0 ? 0 : c.ids[i - 1] + 1);
    EXPECT_LT(c.ids[i], experts);
  }
}

TEST(RoutingPolicy, WithoutEffectGivesTheGatesBits) {
  for (const GateSpec& gate : kFamilies) {
    const Matrix logits = Noise(50, 3);
    const Result expected = Route(gate, "cumulative:p=1", logits);
    for (size_t r = 0; r < logits.size(); ++r) {
      Choice plain{std::vector<int32_t>(3), std::vector<float>(3)};
      std::vector<float> row = logits[r];
      std::vector<float> scratch(static_cast<size_t>(GateScratch(gate, 12)));
      const std::vector<float> bias(gate.correction_bias ? 12 : 0);
      SelectExperts(gate, row, bias, scratch.data(), plain.ids.data(), plain.weights.data());
      ASSERT_TRUE(SameBits(expected[r], plain));
    }
    for (const char* text : {"cumulative:p=0,min=3", "entropy:low=0,few=1", "entropy:low=1,few=3",
                             "entropy:high=1,switch=0", "capacity:factor=100",
                             "node-limited:max=4,nodes=4", "node-limited:max=3,nodes=12"}) {
      const Result result = Route(gate, text, logits);
      for (size_t r = 0; r < logits.size(); ++r) {
        ASSERT_TRUE(SameBits(result[r], expected[r])) << text << ", row " << r;
      }
      EXPECT_EQ(result.counts.changed, 0u) << text;
      EXPECT_EQ(result.counts.rows, 50u) << text;
      EXPECT_EQ(result.counts.by_experts[3], 50u) << text;
    }
  }
}

TEST(RoutingPolicy, ARowDependsOnItselfAlone) {
  for (const GateSpec& gate : kFamilies) {
    for (const char* text : {"cumulative:p=0.7", "entropy:low=0.65,few=1,high=0.7,add=next-best",
                             "entropy:high=0.7,switch=4", "node-limited:max=1,nodes=4"}) {
      const Matrix logits = Noise(40, 9);
      const Result together = Route(gate, text, logits);
      EXPECT_GT(together.counts.changed, 0u) << text;
      for (size_t r = 0; r < logits.size(); ++r) {
        ExpectWellFormed(together[r], 12);
        ASSERT_TRUE(SameBits(together[r], Route(gate, text, logits[r]))) << text;
      }
    }
  }
}

TEST(RoutingPolicy, NanGivesDistinctExpertsAndNoEntropy) {
  for (const GateSpec& gate : kFamilies) {
    for (const char* text :
         {"cumulative:p=0.5", "entropy:low=0.9,few=1,high=0.9,add=next-best",
          "entropy:high=0.1,switch=2", "capacity:factor=1", "node-limited:max=1,nodes=4"}) {
      Matrix logits(3, std::vector<float>(12, kNan));
      logits[1] = {1, kNan, 3, 4, 5, kNan, 7, 8, 1, 2, kNan, 0};
      logits[2] = Noise(1, 5)[0];
      const Result result = Route(gate, text, logits);
      for (const Choice& c : result.rows) ExpectWellFormed(c, 12);
      EXPECT_EQ(result.counts.rows, 3u);
    }
  }
}

ModelSpec Shape(int experts, int top_k, int groups) {
  ModelSpec spec;
  spec.experts.count = experts;
  spec.gate = {.groups = groups, .topk_groups = groups, .top_k = top_k};
  return spec;
}

absl::Status Fits(const char* text, const ModelSpec& spec) {
  return CheckRouting(*config::ParseRoutingPolicy(text), spec);
}

TEST(CheckRouting, MustFitTheModel) {
  const ModelSpec spec = Shape(32, 4, 8);
  for (const char* text :
       {"gate", "entropy:low=0.5,few=4,high=0.9,add=31", "entropy:high=0.9,switch=0",
        "cumulative:p=0.5,min=4", "capacity:factor=0.5", "node-limited:max=1", "node-limited:max=8",
        "node-limited:max=2,nodes=16"}) {
    EXPECT_TRUE(Fits(text, spec).ok()) << text << ": " << Fits(text, spec);
  }
  const struct {
    const char* text;
    ModelSpec spec;
    const char* why;
  } cases[] = {
      {"entropy:low=0.5,few=5", spec, "few=5, but the model chooses 4"},
      {"entropy:high=0.5,add=32", spec, "add=32, but a layer has experts 0 to 31"},
      {"entropy:high=0.5,switch=32", spec, "switch=32, but a layer has experts 0 to 31"},
      {"entropy:high=0.5,add=next-best", Shape(4, 4, 1), "every token has all 4 experts"},
      {"entropy:low=0.5,few=1", Shape(1, 1, 1), "1 expert a layer"},
      {"cumulative:p=0.5,min=5", spec, "min=5, but the model chooses 4"},
      {"node-limited:max=1", Shape(32, 4, 1), "nodes=N cuts its 32 experts"},
      {"node-limited:max=1,nodes=5", spec, "nodes=5 does not divide 32"},
      {"node-limited:max=9", spec, "max=9 of 8 nodes"},
      {"node-limited:max=1,nodes=16", spec, "a token needs 4 experts"},
  };
  for (const auto& c : cases) {
    const absl::Status status = Fits(c.text, c.spec);
    ASSERT_FALSE(status.ok()) << c.text;
    EXPECT_THAT(std::string(status.message()), StartsWith("--routing-policy")) << c.text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.why)) << c.text;
  }
}

// ---- cumulative ----

TEST(Cumulative, TakesTheFewestThatMakeTheShare) {
  const std::vector<float> logits = Shares({0.05f, 0.4f, 0.1f, 0.3f, 0.15f});
  // Of the best four the shares are 0.42, 0.32, 0.16 and 0.11.
  EXPECT_THAT(Route(Softmax(4), "cumulative:p=0.4", logits).ids, ElementsAre(1, -1, -1, -1));
  EXPECT_THAT(Route(Softmax(4), "cumulative:p=0.7", logits).ids, ElementsAre(1, 3, -1, -1));
  EXPECT_THAT(Route(Softmax(4), "cumulative:p=0.8", logits).ids, ElementsAre(1, 3, 4, -1));
  EXPECT_THAT(Route(Softmax(4), "cumulative:p=0.95", logits).ids, ElementsAre(1, 2, 3, 4));
}

TEST(Cumulative, LeavesAtLeastMin) {
  const std::vector<float> logits = Shares({0.9f, 0.04f, 0.03f, 0.02f, 0.01f});
  EXPECT_THAT(Route(Softmax(4), "cumulative:p=0", logits).ids, ElementsAre(0, -1, -1, -1));
  EXPECT_THAT(Route(Softmax(4), "cumulative:p=0.5,min=2", logits).ids, ElementsAre(0, 1, -1, -1));
}

TEST(Cumulative, WeighsWhatStaysAsTheFamilyDoes) {
  const std::vector<float> logits = Shares({0.1f, 0.5f, 0.3f, 0.06f, 0.04f});
  EXPECT_THAT(Route(Softmax(3), "cumulative:p=0.8", logits).weights,
              ElementsAre(FloatNear(0.625f, 1e-6f), FloatNear(0.375f, 1e-6f), 0));
  EXPECT_THAT(Route(AfterTopK(3), "cumulative:p=0.8", logits).weights,
              ElementsAre(FloatNear(0.625f, 1e-6f), FloatNear(0.375f, 1e-6f), 0));
  // Not normalised: what is dropped is missing.
  EXPECT_THAT(Route(Plain(3), "cumulative:p=0.8", logits).weights,
              ElementsAre(FloatNear(0.5f, 1e-6f), FloatNear(0.3f, 1e-6f), 0));
  const Choice v3 = Route(V3(1, 1, 3), "cumulative:p=0.8", {-9, 2, 1, -3, -9});
  EXPECT_THAT(v3.ids, ElementsAre(1, 2, -1));
  EXPECT_NEAR(v3.weights[0] + v3.weights[1], 2.5, 1e-5);
}

TEST(Cumulative, OfEqualsKeepsTheLowerIds) {
  EXPECT_THAT(Route(Softmax(4), "cumulative:p=0.5", std::vector<float>(6, 1.f)).ids,
              ElementsAre(0, 1, -1, -1));
}

TEST(Cumulative, OneExpertStays) {
  EXPECT_THAT(Route(Softmax(1), "cumulative:p=0.1", {0, 3, 1}).ids, ElementsAre(1));
}

// ---- entropy ----

TEST(EntropyRouting, LogIsTheLogarithm) {
  for (const double x : {1e-300, 1e-9, 0.1, 0.5, 0.70710678, 1.0, 1.5, 2.0, 10.0, 128.0, 1e300}) {
    EXPECT_NEAR(Log(x), std::log(x), 1e-14 * std::max(1.0, std::abs(std::log(x)))) << x;
  }
  EXPECT_TRUE(std::isnan(Log(std::nan(""))));
}

TEST(EntropyRouting, EntropyIsThatOfTheSoftmax) {
  const auto entropy = [](const std::vector<float>& shares) {
    return Entropy(Shares(shares), shares);
  };
  EXPECT_NEAR(entropy({0.25f, 0.25f, 0.25f, 0.25f}), std::log(4), 1e-6);
  EXPECT_NEAR(entropy({0.5f, 0.25f, 0.125f, 0.125f}), 1.75 * std::log(2), 1e-6);
  // An expert that cannot be: −inf and 0.
  EXPECT_NEAR(entropy({0.5f, 0.5f, 0.0f}), std::log(2), 1e-6);
  EXPECT_NEAR(entropy({1, 0, 0}), 0, 1e-9);
  EXPECT_TRUE(std::isnan(Entropy(std::vector<float>{kNan, 1}, std::vector<float>{kNan, kNan})));
}

const std::vector<float> kSure = {0, 9, 0, 2, 0, 0, 0, 1};           // entropy 0.003 of ln 8
const std::vector<float> kUnsure = {0, .2f, 0, .1f, 0, 0, 0, .05f};  // and 0.999

TEST(EntropyRouting, SureTokensGetFewer) {
  for (const GateSpec& gate : {Softmax(3), Plain(3), AfterTopK(3), V3(2, 2, 3), V2(2, 2, 3)}) {
    EXPECT_THAT(Route(gate, "entropy:low=0.5,few=1", kSure).ids, ElementsAre(1, -1, -1));
    EXPECT_THAT(Route(gate, "entropy:low=0.5,few=2", kSure).ids, ElementsAre(1, 3, -1));
    EXPECT_THAT(Route(gate, "entropy:low=0.5,few=1", kUnsure).ids, ElementsAre(1, 3, 7));
  }
  EXPECT_THAT(Route(Softmax(3), "entropy:low=0.5,few=1", kSure).weights,
              ElementsAre(FloatEq(1), 0, 0));
}

TEST(EntropyRouting, UnsureTokensGetTheFallbackToo) {
  for (const GateSpec& gate : {Softmax(3), Plain(3), AfterTopK(3), V3(2, 2, 3), V2(2, 2, 3)}) {
    EXPECT_THAT(Route(gate, "entropy:high=0.5,add=5", kUnsure).ids, ElementsAre(1, 3, 5, 7));
    EXPECT_THAT(Route(gate, "entropy:high=0.5,add=next-best", kUnsure).ids,
                ElementsAre(0, 1, 3, 7));
    // Chosen already; and sure: one place stays empty.
    EXPECT_THAT(Route(gate, "entropy:high=0.5,add=3", kUnsure).ids, ElementsAre(1, 3, 7, -1));
    EXPECT_THAT(Route(gate, "entropy:high=0.5,add=5", kSure).ids, ElementsAre(1, 3, 7, -1));
  }
  const Choice c = Route(Softmax(3), "entropy:high=0.5,add=5", kUnsure);
  EXPECT_NEAR(c.weights[0] + c.weights[1] + c.weights[2] + c.weights[3], 1, 1e-6);
  EXPECT_GT(c.weights[0], c.weights[2]);
}

TEST(EntropyRouting, UnsureTokensSwitch) {
  EXPECT_THAT(Route(Softmax(3), "entropy:high=0.5,switch=5", kUnsure).ids, ElementsAre(5, -1, -1));
  EXPECT_THAT(Route(Softmax(3), "entropy:high=0.5,switch=5", kUnsure).weights,
              ElementsAre(FloatEq(1), 0, 0));
  EXPECT_THAT(Route(V3(2, 2, 3), "entropy:high=0.5,switch=5", kUnsure).weights,
              ElementsAre(FloatEq(2.5), 0, 0));
  EXPECT_THAT(Route(Softmax(3), "entropy:high=0.5,switch=3", kUnsure).ids, ElementsAre(3, -1, -1));
  EXPECT_THAT(Route(Softmax(3), "entropy:high=0.5,switch=5", kSure).ids, ElementsAre(1, 3, 7));
  EXPECT_THAT(Route(Softmax(1), "entropy:high=0.5,switch=1", kUnsure).ids, ElementsAre(1));
}

TEST(EntropyRouting, ANamedFallbackMayLieInAMaskedGroup) {
  // Groups 0 (experts 0 to 3) of two is kept.
  const std::vector<float> logits = {.4f, .3f, .2f, 0, .1f, 0, 0, 0};
  for (const GateSpec& gate : {V3(2, 1, 2), V2(2, 1, 2)}) {
    const Choice c = Route(gate, "entropy:high=0.5,add=6", logits);
    EXPECT_THAT(c.ids, ElementsAre(0, 1, 6));
    EXPECT_GT(c.weights[2], 0);
    // The next best is of the kept group.
    EXPECT_THAT(Route(gate, "entropy:high=0.5,add=next-best", logits).ids, ElementsAre(0, 1, 2));
  }
  // All of the kept group is chosen: nothing to add.
  EXPECT_THAT(Route(V3(2, 1, 4), "entropy:high=0.5,add=next-best", logits).ids,
              ElementsAre(0, 1, 2, 3, -1));
}

TEST(EntropyRouting, Counts) {
  const Result result = Route(Softmax(3), "entropy:low=0.5,few=1,high=0.9,add=5",
                              Matrix{kSure, kUnsure, kUnsure, kSure, kSure});
  EXPECT_EQ(result.counts.rows, 5u);
  EXPECT_EQ(result.counts.changed, 5u);
  EXPECT_EQ(result.counts.fallbacks, 2u);
  EXPECT_EQ(result.counts.experts, 3u + 2 * 4);
  EXPECT_EQ(result.counts.by_experts[1], 3u);
  EXPECT_EQ(result.counts.by_experts[4], 2u);
  EXPECT_EQ(result.counts.by_entropy[0], 3u);
  EXPECT_EQ(result.counts.by_entropy[9], 2u);
  EXPECT_NEAR(static_cast<double>(result.counts.entropy_millionths) * 1e-6, 2, 0.03);
}

// ---- capacity ----

TEST(Capacity, OverflowGoesToTheNextBest) {
  // Four rows of 2 experts each over 8 experts: one row an expert at factor 1.
  const std::vector<float> row = {8, 7, 6, 5, 4, 3, 2, 1};
  const Result result = Route(Softmax(2), "capacity:factor=1", Matrix(4, row));
  EXPECT_THAT(result[0].ids, ElementsAre(0, 1));
  EXPECT_THAT(result[1].ids, ElementsAre(2, 3));
  EXPECT_THAT(result[2].ids, ElementsAre(4, 5));
  EXPECT_THAT(result[3].ids, ElementsAre(6, 7));
  EXPECT_EQ(result.counts.moved, 6u);
  EXPECT_EQ(result.counts.dropped, 0u);
  EXPECT_EQ(result.counts.changed, 3u);
  for (const Choice& c : result.rows) EXPECT_NEAR(c.weights[0] + c.weights[1], 1, 1e-6);
}

TEST(Capacity, WhereNobodyHasRoomAPairIsDropped) {
  // The kept group of V3 has four experts of eight: 3 · 4 pairs find 1 place each at factor 0.5.
  const std::vector<float> row = {8, 7, 6, 5, -1, -1, -2, -2};
  const Result result = Route(V3(2, 1, 2), "capacity:factor=0.5", Matrix(3, row));
  EXPECT_THAT(result[0].ids, ElementsAre(0, 1));
  EXPECT_THAT(result[1].ids, ElementsAre(2, 3));
  EXPECT_THAT(result[2].ids, ElementsAre(-1, -1));
  EXPECT_THAT(result[2].weights, ElementsAre(0, 0));
  EXPECT_EQ(result.counts.moved, 2u);
  EXPECT_EQ(result.counts.dropped, 2u);
  EXPECT_EQ(result.counts.by_experts[0], 1u);
}

TEST(Capacity, NoExpertTakesMoreThanItsShare) {
  for (const GateSpec& gate : kFamilies) {
    const Matrix logits = Noise(60, 17);
    for (const double factor : {0.3, 1.0, 1.3}) {
      const Result result = Route(gate, "capacity:factor=" + std::to_string(factor), logits);
      std::vector<int> loads(12);
      for (const Choice& c : result.rows) {
        ExpectWellFormed(c, 12);
        for (const int32_t e : c.ids) {
          if (e != kNoExpert) ++loads[static_cast<size_t>(e)];
        }
      }
      EXPECT_LE(std::ranges::max(loads), std::ceil(factor * 60 * 3 / 12));
      if (factor <= 1) {
        EXPECT_GT(result.counts.moved, 0u);
      }
    }
  }
}

TEST(Capacity, OneRowIsNeverLimited) {
  for (const GateSpec& gate : kFamilies) {
    const Matrix logits = Noise(1, 23);
    EXPECT_EQ(Route(gate, "capacity:factor=0.01", logits).counts.changed, 0u);
  }
}

TEST(Capacity, TiesGoToTheLowerId) {
  const Result result =
      Route(Softmax(1), "capacity:factor=1", Matrix(4, std::vector<float>(4, 1.f)));
  for (int32_t r = 0; r < 4; ++r) EXPECT_THAT(result[static_cast<size_t>(r)].ids, ElementsAre(r));
}

// ---- node-limited ----

int NodesOf(const Choice& c, int per_node) {
  std::vector<int32_t> nodes;
  for (const int32_t e : c.ids) {
    if (e != kNoExpert) nodes.push_back(e / per_node);
  }
  std::ranges::sort(nodes);
  return static_cast<int>(std::unique(nodes.begin(), nodes.end()) - nodes.begin());
}

TEST(NodeLimited, ExpertsComeFromTheBestNodes) {
  // Four nodes of two. Of one node, the best pair is 2.0 + 1.9; the two best nodes by their best
  // one are those of 5 and 0.
  const std::vector<float> logits = {2.5f, -3, 2.0f, 1.9f, -3, 3.0f, -3, -3};
  EXPECT_THAT(Route(AfterTopK(2), "node-limited:max=1,nodes=4", logits).ids, ElementsAre(2, 3));
  EXPECT_THAT(Route(AfterTopK(2), "node-limited:max=2,nodes=4", logits).ids, ElementsAre(0, 5));
  EXPECT_THAT(Route(AfterTopK(2), "node-limited:max=1,nodes=2", logits).ids, ElementsAre(0, 2));
}

TEST(NodeLimited, NeverMoreNodesAndOtherwiseAsTheGate) {
  for (const GateSpec& gate : kFamilies) {
    for (const int max : {1, 2}) {
      const Matrix logits = Noise(60, 31);
      const Result limited =
          Route(gate, "node-limited:max=" + std::to_string(max) + ",nodes=4", logits);
      const Result plain = Route(gate, "cumulative:p=1", logits);
      for (size_t r = 0; r < logits.size(); ++r) {
        EXPECT_LE(NodesOf(limited[r], 3), max);
        if (NodesOf(plain[r], 3) > max) continue;
        EXPECT_TRUE(SameBits(limited[r], plain[r]));
      }
      EXPECT_EQ(limited.counts.changed > 0, max < gate.topk_groups || gate.groups == 1);
    }
  }
}

TEST(NodeLimited, NodesAreTheGatesGroupsByDefault) {
  const Matrix logits = Noise(60, 37);
  const Result result = Route(V3(4, 3, 3), "node-limited:max=1", logits);
  for (const Choice& c : result.rows) EXPECT_EQ(NodesOf(c, 3), 1);
}

TEST(NodeLimited, MaskedGroupsStayMasked) {
  // Groups of two; of the node {0..3} only group 0 is kept, of {4..7} only group 3. Neither node
  // has three experts that may be taken.
  const std::vector<float> logits = {5, 4, 0, 0, 0, 0, 3, 2};
  EXPECT_THAT(Route(V3(4, 2, 3), "node-limited:max=1,nodes=2", logits).ids, ElementsAre(0, 1, -1));
}

TEST(NodeLimited, TiesGoToTheLowerNode) {
  EXPECT_THAT(Route(Softmax(2), "node-limited:max=1,nodes=4", {0, 1, 1, 0, 1, 0, 0, 1}).ids,
              ElementsAre(0, 1));
  EXPECT_THAT(Route(Softmax(1), "node-limited:max=1,nodes=4", std::vector<float>(8, 1.f)).ids,
              ElementsAre(0));
}

}  // namespace
}  // namespace switchyard::router
