#include "router/dispatch/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

namespace switchyard::router {
namespace {

namespace pb = expertwire::pb;

struct Routing {
  std::vector<int32_t> experts;
  std::vector<float> weights;
  std::vector<int16_t> owner;
  std::vector<size_t> limits;
};

Routing RandomRouting(std::mt19937& random, int64_t tokens, int count, int top_k, int links,
                      bool holes) {
  Routing r;
  std::vector<int32_t> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    std::shuffle(ids.begin(), ids.end(), random);
    std::sort(ids.begin(), ids.begin() + top_k);
    r.experts.insert(r.experts.end(), ids.begin(), ids.begin() + top_k);
    for (int k = 0; k < top_k; ++k) r.weights.push_back(static_cast<float>(random() % 97 + 1));
    if (holes && t % 3 == 0) r.experts.back() = kNoExpert;
  }
  for (int e = 0; e < count; ++e) {
    r.owner.push_back(static_cast<int16_t>(random() % static_cast<uint32_t>(links)));
    if (holes && random() % 8 == 0) r.owner.back() = ExpertMap::kNone;
  }
  for (int l = 0; l < links; ++l) r.limits.push_back(random() % 2 ? 1 << 20 : 700);
  return r;
}

// Every pair stands in one part, as a sum where its token's group is with one worker; groups of
// which somebody is missing are parked whole.
void CheckPairs(const PlanInput& in, const DispatchPlan& plan) {
  std::vector<int> found(static_cast<size_t>(in.tokens * in.top_k), 0);
  const auto of_group = [&](uint32_t pair, auto test) {
    const int32_t* ids = in.experts + pair / in.top_k * in.top_k;
    return std::all_of(ids, ids + in.top_k, [&](int32_t id) {
      return id == kNoExpert ||
             id / in.experts_per_group != in.experts[pair] / in.experts_per_group || test(id);
    });
  };
  for (const PlannedPart& part : plan.used()) {
    for (const WantedPair& w : part.parked) {
      ++found[w.pair];
      EXPECT_FALSE(of_group(w.pair, [&](int32_t id) { return in.owner[id] != ExpertMap::kNone; }));
    }
    for (const expertwire::Segment& segment : part.segments) {
      for (uint32_t i = segment.begin; i < segment.begin + segment.count; ++i) {
        const uint32_t pair = part.pairs[i];
        ++found[pair];
        EXPECT_EQ(segment.expert, static_cast<uint32_t>(in.experts[pair]));
        EXPECT_EQ(part.tokens[part.row_index[i]], pair / static_cast<uint32_t>(in.top_k));
        const bool sum = segment.result == pb::GROUP_SUMS;
        EXPECT_EQ(sum, of_group(pair, [&](int32_t id) { return in.owner[id] == part.link; }));
        if (sum) {
          EXPECT_EQ(part.weights[i], in.weights[pair]);
        }
      }
    }
  }
  for (size_t pair = 0; pair < found.size(); ++pair) {
    EXPECT_EQ(found[pair], in.experts[pair] == kNoExpert ? 0 : 1) << pair;
  }
}

// What has to hold of every plan.
void Check(const PlanInput& in, const DispatchPlan& plan) {
  std::set<int> finished;
  for (const PlannedPart& part : plan.used()) {
    if (part.link == PlannedPart::kNobody) continue;
    EXPECT_TRUE(std::is_sorted(part.tokens.begin(), part.tokens.end(), std::less_equal<>()));
    EXPECT_FALSE(finished.contains(part.link)) << "a part behind the last";
    if (part.last) finished.insert(part.link);
    const size_t limit = in.max_part_bytes[static_cast<size_t>(part.link)];
    if (part.tokens.size() > 1) {
      EXPECT_LE(part.tokens.size() * in.hidden * 2, limit);
      EXPECT_LE(part.layout.bytes(in.hidden, in.dtype), limit + expertwire::kAlign);
    }
    std::set<uint32_t> used(part.row_index.begin(), part.row_index.end());
    EXPECT_EQ(used.size(), part.tokens.size()) << "a row that nobody reads";
    size_t begin = 0;
    for (size_t s = 0; s < part.segments.size(); ++s) {
      const expertwire::Segment& segment = part.segments[s];
      EXPECT_EQ(segment.begin, begin);
      EXPECT_GT(segment.count, 0u);
      begin += segment.count;
      if (s > 0) {
        const expertwire::Segment& before = part.segments[s - 1];
        EXPECT_LT(std::pair(before.expert, before.result),
                  std::pair(segment.expert, segment.result));
      }
      EXPECT_EQ(in.owner[segment.expert], part.link);
      const auto rows = std::span(part.row_index).subspan(segment.begin, segment.count);
      EXPECT_TRUE(std::is_sorted(rows.begin(), rows.end(), std::less_equal<>()));
    }
    EXPECT_EQ(begin, part.row_index.size());
  }
  CheckPairs(in, plan);
}

TEST(Plan, HoldsItsPropertiesForRandomRoutings) {
  DispatchPlan plan;  // reused, as the dispatcher does
  std::vector<WantedPair> wanted;
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const int64_t tokens = 1 + random() % 50;
    const int links = 1 + static_cast<int>(random() % 4);
    const uint32_t group = seed % 3 == 0 ? 1 : seed % 3 == 1 ? 4 : 8;
    const Routing r = RandomRouting(random, tokens, 24, 5, links, seed % 4 == 0);
    const PlanInput in{.tokens = tokens,
                       .top_k = 5,
                       .experts = r.experts.data(),
                       .weights = r.weights.data(),
                       .owner = r.owner,
                       .experts_per_group = group,
                       .hidden = 64,
                       .max_part_bytes = r.limits};
    plan.part_count = 0;
    WantAll(in, &wanted);
    PlanPairs(in, wanted, &plan);
    Check(in, plan);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(Plan, OneWorkerWithEverythingIsAskedOnceForSums) {
  std::mt19937 random(1);
  Routing r = RandomRouting(random, 7, 24, 5, 1, false);
  r.limits = {1 << 20};
  DispatchPlan plan;
  const PlanInput in{.tokens = 7,
                     .top_k = 5,
                     .experts = r.experts.data(),
                     .weights = r.weights.data(),
                     .owner = r.owner,
                     .experts_per_group = 8,
                     .hidden = 64,
                     .max_part_bytes = r.limits};
  std::vector<WantedPair> wanted;
  WantAll(in, &wanted);
  PlanPairs(in, wanted, &plan);
  ASSERT_EQ(plan.part_count, 1u);
  EXPECT_EQ(plan.parts[0].tokens.size(), 7u);
  EXPECT_EQ(plan.parts[0].layout.rows, 0u);
  EXPECT_LE(plan.parts[0].layout.sums, 21u);  // at most three groups a token
}

TEST(ExpertMap, SaysWhatIsMissing) {
  ExpertMap map({false, true, true, true}, 64);
  EXPECT_EQ(map.Missing(), "layers 1–3: experts 0–63 have no live worker");
  pb::Hello hello;
  for (int layer : {1, 2, 3, 9, -1, 0}) {
    pb::HeldExperts* held = hello.add_held();
    held->set_layer(layer);
    held->add_first(0), held->add_last(layer == 3 ? 39 : 1000);
  }
  map.Add(0, hello);
  EXPECT_EQ(map.Missing(), "layer 3: experts 40–63 have no live worker");
  hello.Clear();
  hello.add_held()->set_layer(3);
  hello.mutable_held(0)->add_first(18), hello.mutable_held(0)->add_last(62);
  map.Add(1, hello);
  EXPECT_EQ(map.Missing(), "layer 3: expert 63 has no live worker");
  EXPECT_EQ(map.first(3)[39], 0) << "links stand in order";
  EXPECT_EQ(map.first(3)[40], 1);
  EXPECT_THAT(map.holders(3, 39), ::testing::ElementsAre(0, 1));
  EXPECT_TRUE(map.replicated(3));
  EXPECT_FALSE(map.replicated(2));
}

}  // namespace
}  // namespace switchyard::router
