#include "router/sample/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "services/base/text.h"

namespace switchyard::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Case {
  std::vector<float> logits;
  SamplingParams params;
  std::vector<int32_t> prompt, output, banned;
  int choice = 0;
  int64_t position = 0;
  int top_logprobs = -1;
};

absl::StatusOr<SampledToken> SampleOne(const Case& c) {
  Sampler sampler(static_cast<int>(c.logits.size()));
  TokenHistory history(c.params, c.prompt);
  for (int32_t id : c.output) history.AddOutput(id);
  return sampler.Sample({.logits = c.logits,
                         .params = c.params,
                         .history = history,
                         .banned = c.banned,
                         .choice = c.choice,
                         .position = c.position,
                         .top_logprobs = c.top_logprobs});
}

int32_t IdOf(const Case& c) {
  const auto token = SampleOne(c);
  EXPECT_TRUE(token.ok()) << token.status();
  return token.ok() ? token->id : -1;
}

// How often each token comes in `draws` positions, as a share.
std::vector<double> Shares(Case c, int draws) {
  Sampler sampler(static_cast<int>(c.logits.size()));
  TokenHistory history(c.params, c.prompt);
  for (int32_t id : c.output) history.AddOutput(id);
  std::vector<double> shares(c.logits.size());
  for (int i = 0; i < draws; ++i) {
    const auto token = sampler.Sample({.logits = c.logits,
                                       .params = c.params,
                                       .history = history,
                                       .banned = c.banned,
                                       .position = i});
    EXPECT_TRUE(token.ok());
    shares[token->id] += 1.0 / draws;
  }
  return shares;
}

std::vector<double> Softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> p(logits.size());
  const double max = *std::max_element(logits.begin(), logits.end());
  for (size_t i = 0; i < p.size(); ++i) p[i] = std::exp((logits[i] - max) / temperature);
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= sum;
  return p;
}

// Of `draws` draws each share lies within five standard deviations.
void ExpectShares(const std::vector<double>& got, std::vector<double> want, int draws) {
  const double sum = std::accumulate(want.begin(), want.end(), 0.0);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    const double p = want[i] / sum;
    if (p == 0) {
      EXPECT_EQ(got[i], 0) << "token " << i << " may not come";
    } else {
      EXPECT_NEAR(got[i], p, 5 * std::sqrt(p * (1 - p) / draws) + 1e-12) << "token " << i;
    }
  }
}

const std::vector<float> kLogits = {0.5f, 2.0f, -1.0f, 1.5f, 2.0f, 0.0f};

TEST(SamplerTest, GreedyTakesTheLargestAndTheLowerIdOfEquals) {
  EXPECT_EQ(IdOf({.logits = kLogits}), 1);
  EXPECT_EQ(IdOf({.logits = {-3, -2, -2}}), 1);
  EXPECT_EQ(IdOf({.logits = {-kInf, -kInf, -5}}), 2);
}

TEST(SamplerTest, TemperatureShapesTheDistribution) {
  for (float temperature : {0.5f, 1.0f, 2.0f}) {
    ExpectShares(Shares({.logits = kLogits, .params = {.temperature = temperature}}, 20000),
                 Softmax(kLogits, temperature), 20000);
  }
  // So cold that only the two equal best are left.
  const auto cold = Shares({.logits = kLogits, .params = {.temperature = 1e-6f}}, 2000);
  EXPECT_NEAR(cold[1] + cold[4], 1, 1e-9);
  EXPECT_GT(cold[4], 0.4);
}

TEST(SamplerTest, TopKKeepsExactlyKAndTheLowerIdOfEquals) {
  auto p = Softmax(kLogits, 1);
  p[0] = p[2] = p[5] = 0;
  ExpectShares(Shares({.logits = kLogits, .params = {.temperature = 1, .top_k = 3}}, 20000), p,
               20000);
  EXPECT_NEAR(Shares({.logits = kLogits, .params = {.temperature = 1, .top_k = 1}}, 100)[1], 1,
              1e-9);
  ExpectShares(Shares({.logits = kLogits, .params = {.temperature = 1, .top_k = 600}}, 20000),
               Softmax(kLogits, 1), 20000);
}

TEST(SamplerTest, TopPKeepsTheSmallestSetThatReachesIt) {
  // 0.4, 0.3, 0.2, 0.1 in another order.
  const std::vector<float> logits = {std::log(0.2f), std::log(0.4f), std::log(0.1f),
                                     std::log(0.3f)};
  const auto with = [&](float top_p) {
    return Shares({.logits = logits, .params = {.temperature = 1, .top_p = top_p}}, 10000);
  };
  ExpectShares(with(0.35f), {0, 1, 0, 0}, 10000);
  ExpectShares(with(0.65f), {0, 0.4, 0, 0.3}, 10000);
  ExpectShares(with(0.75f), {0.2, 0.4, 0, 0.3}, 10000);
  ExpectShares(with(0.95f), {0.2, 0.4, 0.1, 0.3}, 10000);
  ExpectShares(with(1e-9f), {0, 1, 0, 0}, 1000);
}

TEST(SamplerTest, TopPIsOfWhatTopKLeft) {
  const std::vector<float> logits = {std::log(0.2f), std::log(0.4f), std::log(0.1f),
                                     std::log(0.3f)};
  // Of the best two, 4/7 and 3/7, the first alone reaches a half; of all four it would not.
  ExpectShares(
      Shares({.logits = logits, .params = {.temperature = 1, .top_k = 2, .top_p = 0.5f}}, 2000),
      {0, 1, 0, 0}, 2000);
}

TEST(SamplerTest, MinPIsRelativeToTheBest) {
  const std::vector<float> logits = {std::log(0.2f), std::log(0.4f), std::log(0.1f),
                                     std::log(0.3f)};
  const auto with = [&](float min_p, int top_k) {
    return Shares({.logits = logits, .params = {.temperature = 1, .top_k = top_k, .min_p = min_p}},
                  10000);
  };
  ExpectShares(with(0.45f, 0), {0.2, 0.4, 0, 0.3}, 10000);
  ExpectShares(with(0.6f, 0), {0, 0.4, 0, 0.3}, 10000);
  ExpectShares(with(0.6f, 3), {0, 0.4, 0, 0.3}, 10000);
  ExpectShares(with(1, 0), {0, 1, 0, 0}, 1000);
}

TEST(SamplerTest, RepetitionPenaltyIsOverPromptAndOutput) {
  // Positive logits are divided, negative ones multiplied.
  EXPECT_EQ(IdOf({.logits = {4, 3, 1}, .params = {.repetition_penalty = 2}, .prompt = {0}}), 1);
  EXPECT_EQ(IdOf({.logits = {4, 3, 1}, .params = {.repetition_penalty = 2}, .output = {0}}), 1);
  EXPECT_EQ(IdOf({.logits = {-1, -1.5f}, .params = {.repetition_penalty = 2}, .prompt = {0}}), 1);
  // Once, however often it came.
  EXPECT_EQ(IdOf({.logits = {4, 1.5f},
                  .params = {.repetition_penalty = 2},
                  .prompt = {0, 0},
                  .output = {0, 0}}),
            0);
}

TEST(SamplerTest, PresenceAndFrequencyPenaltiesAreOverOutputOnly) {
  EXPECT_EQ(IdOf({.logits = {2, 1}, .params = {.presence_penalty = 1.5f}, .prompt = {0, 0}}), 0);
  EXPECT_EQ(IdOf({.logits = {2, 1}, .params = {.presence_penalty = 1.5f}, .output = {0}}), 1);
  EXPECT_EQ(IdOf({.logits = {2, 1}, .params = {.presence_penalty = 0.9f}, .output = {0, 0, 0}}), 0);
  EXPECT_EQ(IdOf({.logits = {2, 1},
                  .params = {.frequency_penalty = 0.4f},
                  .prompt = {0, 0, 0},
                  .output = {0, 0}}),
            0);
  EXPECT_EQ(IdOf({.logits = {2, 1}, .params = {.frequency_penalty = 0.4f}, .output = {0, 0, 0}}),
            1);
  EXPECT_EQ(IdOf({.logits = {1, 2}, .params = {.presence_penalty = -2}, .output = {0}}), 0);
}

TEST(SamplerTest, LogitBiasComesBeforePenaltiesAndBansAreFinal) {
  EXPECT_EQ(IdOf({.logits = {2, 1}, .params = {.logit_bias = {{1, 1.5f}}}}), 1);
  EXPECT_EQ(IdOf({.logits = {2, 1}, .params = {.logit_bias = {{0, -100}}}}), 1);
  // 1 + 5 = 6, halved to 3: below 3.5. The other way round it would be 0.5 + 5.
  EXPECT_EQ(IdOf({.logits = {3.5f, 1},
                  .params = {.repetition_penalty = 2, .logit_bias = {{1, 5}}},
                  .prompt = {1}}),
            0);
  EXPECT_EQ(IdOf({.logits = {2, 1}, .params = {.logit_bias = {{0, 100}}}, .banned = {0}}), 1);
  ExpectShares(
      Shares({.logits = kLogits, .params = {.temperature = 1}, .banned = {1, 4, 3, 0}}, 5000),
      {0, 0, std::exp(-1.0), 0, 0, 1}, 5000);
}

TEST(SamplerTest, LogprobsAreOfTheUnmodifiedLogits) {
  std::mt19937_64 random(7);
  std::normal_distribution<float> normal(0, 4);
  Case c{.logits = std::vector<float>(5003), .params = {.temperature = 0.3f}, .top_logprobs = 20};
  for (float& x : c.logits) x = normal(random);
  c.logits[17] = c.logits[4000];  // a tie
  c.params.logit_bias = {{3, 5}};
  c.params.repetition_penalty = 1.3f;
  c.prompt = {17, 18, 19};
  const auto token = SampleOne(c);
  ASSERT_TRUE(token.ok());
  double sum = 0;
  for (float x : c.logits) sum += std::exp(static_cast<double>(x));
  const auto want = [&](int32_t id) { return c.logits[id] - std::log(sum); };
  // Float rounding of the softmax's sum and of the result.
  const double tolerance = 4 * 0x1p-23 * (1 + std::abs(want(token->id)));
  EXPECT_NEAR(token->logprob, want(token->id), tolerance);

  std::vector<int32_t> order(c.logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return c.logits[a] > c.logits[b]; });
  ASSERT_EQ(token->top.size(), 20u);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(token->top[i].id, order[i]);
    EXPECT_NEAR(token->top[i].logprob, want(order[i]), 1e-5);
  }
}

TEST(SamplerTest, TiesInTopLogprobsGoToTheLowerId) {
  const auto token = SampleOne({.logits = std::vector<float>(100, 1.0f), .top_logprobs = 3});
  ASSERT_TRUE(token.ok());
  ASSERT_EQ(token->top.size(), 3u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(token->top[i].id, i);
  EXPECT_NEAR(token->logprob, -std::log(100), 1e-6);
}

TEST(SamplerTest, ScoreGivesAnyTokenAndTheBest) {
  Sampler sampler(static_cast<int>(kLogits.size()));
  const auto score = sampler.Score(kLogits, 2, 2);
  ASSERT_TRUE(score.ok());
  EXPECT_EQ(score->id, 2);
  EXPECT_NEAR(score->logprob, std::log(Softmax(kLogits, 1)[2]), 1e-6);
  ASSERT_EQ(score->top.size(), 2u);
  EXPECT_EQ(score->top[0].id, 1);
  EXPECT_EQ(score->top[1].id, 4);
}

TEST(SamplerTest, ADrawDependsOnSeedChoiceAndPositionAlone) {
  Case c{.logits = std::vector<float>(1000, 0.0f), .params = {.temperature = 1, .seed = 5}};
  c.choice = 2, c.position = 9;
  const int32_t id = IdOf(c);
  EXPECT_EQ(IdOf(c), id);
  // The same draw with knobs that change nothing but the path through the code.
  c.params.top_k = 1000;
  c.params.top_p = 0.9999999f;
  EXPECT_EQ(IdOf(c), id);
  int changed = 0;
  Case other = c;
  other.params.seed = 6, changed += IdOf(other) != id;
  other = c, other.choice = 1, changed += IdOf(other) != id;
  other = c, other.position = 10, changed += IdOf(other) != id;
  EXPECT_EQ(changed, 3);
}

// The shortcuts of top_p (a threshold instead of a full sort) against a plain double computation.
TEST(SamplerTest, LargeVocabulariesAgreeWithThePlainDefinition) {
  constexpr int kVocab = 5003;
  std::mt19937_64 random(11);
  for (double sigma : {0.0, 0.5, 3.0}) {
    std::normal_distribution<float> normal(0, 1);
    Case c{.logits = std::vector<float>(kVocab)};
    for (float& x : c.logits) x = static_cast<float>(normal(random) * sigma);
    const std::vector<double> p = Softmax(c.logits, 1);
    std::vector<int32_t> order(kVocab);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return p[a] > p[b]; });
    for (float top_p : {0.1f, 0.9f, 0.999f}) {
      c.params = {.temperature = 1, .top_p = top_p, .seed = 3};
      size_t kept = 0;
      double mass = 0;
      while (mass < top_p) mass += p[order[kept++]];
      for (c.position = 0; c.position < 12; ++c.position) {
        const int32_t id = IdOf(c);
        const auto rank = std::find(order.begin(), order.end(), id) - order.begin();
        // Rounding may move the edge by a few tokens of nearly nothing.
        EXPECT_LE(rank, static_cast<ptrdiff_t>(kept + kept / 1000 + 1)) << sigma << " " << top_p;
      }
    }
  }
}

TEST(SamplerTest, NonsenseLogitsAreErrors) {
  for (float temperature : {0.0f, 1.0f}) {
    const auto message = [&](std::vector<float> logits, std::vector<int32_t> banned = {}) {
      const auto token = SampleOne({.logits = std::move(logits),
                                    .params = {.temperature = temperature},
                                    .banned = std::move(banned)});
      EXPECT_EQ(token.status().code(), absl::StatusCode::kInternal);
      return std::string(ToStd(token.status().message()));
    };
    EXPECT_THAT(message({1, kNan, 2}), HasSubstr("NaN"));
    EXPECT_THAT(message({kNan, kNan}), HasSubstr("NaN"));
    EXPECT_THAT(message({1, kInf}), HasSubstr("token 1 is infinite"));
    EXPECT_THAT(message({-kInf, -kInf}), HasSubstr("no token is left"));
    EXPECT_THAT(message({1, 2}, {0, 1}), HasSubstr("no token is left"));
  }
}

// What a seed gave yesterday it gives tomorrow. A few lines of Python give the same ids.
TEST(SamplerTest, DrawsAreTheSameInEveryBuild) {
  Case c{.logits = std::vector<float>(257), .params = {.temperature = 0.8f, .seed = 1234}};
  for (int i = 0; i < 257; ++i) c.logits[i] = static_cast<float>((i * 37) % 101) / 20;
  std::vector<int32_t> ids;
  for (c.position = 0; c.position < 8; ++c.position) ids.push_back(IdOf(c));
  c.params.top_p = 0.7f;
  for (; c.position < 12; ++c.position) ids.push_back(IdOf(c));
  EXPECT_THAT(ids, ElementsAre(30, 160, 60, 180, 22, 204, 251, 180, 139, 30, 30, 240));
}

}  // namespace
}  // namespace switchyard::router
