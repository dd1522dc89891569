#include "expert-worker/store/holdings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "services/base/status.h"
#include "tests/support/moe_fixture.h"

namespace switchyard::worker {
namespace {

namespace pb = expertwire::pb;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Ids = std::vector<std::pair<int, std::vector<uint32_t>>>;  // of layers

pb::Assign MakeAssign(uint64_t epoch, const Ids& ids, bool also = false) {
  pb::Assign out;
  out.set_epoch(epoch);
  out.set_also(also);
  for (const auto& [layer, experts] : ids) {
    pb::HeldExperts* of_layer = out.add_experts();
    of_layer->set_layer(layer);
    for (uint32_t e : experts) {
      of_layer->add_first(e);
      of_layer->add_last(e);
    }
  }
  return out;
}

// Layers 1 and 2 of 12 experts; experts 0 and 1 of both are held.
class HoldingsTest : public ::testing::Test {
 protected:
  std::string Next() {
    const auto next = holdings_.NextToLoad();
    if (!next) return "";
    last_ = next->id;
    return fmt::format("{}.{}{}", next->id.layer, next->id.expert, next->urgent ? " urgent" : "");
  }
  void LoadAll() {
    while (!Next().empty()) holdings_.OnLoaded(last_);
  }
  std::string Held() const {
    pb::Holds holds;
    holdings_.FillHolds(&holds);
    std::string out;
    for (const auto& layer : holds.held()) {
      for (int i = 0; i < layer.first_size(); ++i) {
        out += fmt::format("{}.{}-{} ", layer.layer(), layer.first(i), layer.last(i));
      }
    }
    return out;
  }
  std::vector<std::string> MayGo() const {
    std::vector<std::string> out;
    for (const ExpertId id : holdings_.MayGo()) {
      out.push_back(fmt::format("{}.{}", id.layer, id.expert));
    }
    return out;
  }
  std::string Failed() const {
    pb::Holds holds;
    holdings_.FillHolds(&holds);
    std::string out;
    for (const auto& f : holds.failed()) {
      out += fmt::format("{}.{} {};", f.layer(), f.expert(), f.why());
    }
    return out;
  }

  static std::vector<bool> FirstTwo() {
    std::vector<bool> held(12, false);
    held[0] = held[1] = true;
    return held;
  }
  const ModelSpec spec_ = testing::MoeSpec({});
  const std::unique_ptr<ExpertStore> store_ =
      *ExpertStore::Open(spec_, FirstTwo(), std::make_shared<testing::MemorySource>(spec_, 7));
  Holdings holdings_{*store_};
  ExpertId last_;
  const int router_ = 0, other_ = 0;  // their addresses
};

TEST_F(HoldingsTest, TheStartIsEpochZero) {
  EXPECT_EQ(Held(), "1.0-1 2.0-1 ");
  EXPECT_EQ(holdings_.epoch(), 0u);
  EXPECT_EQ(Next(), "");
  holdings_.OnRouter(&router_);
  EXPECT_THAT(MayGo(), IsEmpty());
}

TEST_F(HoldingsTest, AnEpochIsHeldOnceAllOfItIs) {
  const uint64_t before = holdings_.version();
  holdings_.Assign(MakeAssign(5, {{1, {1, 2, 4}}}));
  EXPECT_GT(holdings_.version(), before);
  EXPECT_EQ(holdings_.assigned_epoch(), 5u);
  EXPECT_EQ(holdings_.epoch(), 0u);
  EXPECT_TRUE(holdings_.Coming(1, 2));
  EXPECT_FALSE(holdings_.Coming(1, 1));
  EXPECT_EQ(Next(), "1.2");
  EXPECT_TRUE(holdings_.Coming(1, 2));
  holdings_.OnLoaded({1, 2});
  EXPECT_EQ(holdings_.epoch(), 0u);
  EXPECT_EQ(holdings_.to_load(), 1u);
  EXPECT_EQ(Next(), "1.4");
  holdings_.OnLoaded({1, 4});
  EXPECT_EQ(holdings_.epoch(), 5u);
  EXPECT_EQ(Held(), "1.0-2 1.4-4 2.0-1 ");      // with what is to be given up
  holdings_.Assign(MakeAssign(6, {{1, {4}}}));  // nothing new
  EXPECT_EQ(holdings_.epoch(), 6u);
}

TEST_F(HoldingsTest, AnEpochThatIsNotAboveTheLastIsPassedOver) {
  holdings_.Assign(MakeAssign(5, {{1, {2}}}));
  const uint64_t version = holdings_.version();
  holdings_.Assign(MakeAssign(5, {{1, {3}}}));
  holdings_.Assign(MakeAssign(4, {{1, {3}}}));
  EXPECT_EQ(holdings_.version(), version);
  EXPECT_EQ(Next(), "1.2");
  EXPECT_EQ(Next(), "");
}

TEST_F(HoldingsTest, ALaterEpochForgetsWhatTheOneBeforeStillWanted) {
  holdings_.Assign(MakeAssign(5, {{1, {2, 3, 4}}}));
  EXPECT_EQ(Next(), "1.2");  // on its way
  holdings_.Assign(MakeAssign(6, {{1, {2, 5}}}));
  EXPECT_EQ(Next(), "1.5");
  EXPECT_EQ(Next(), "");
  holdings_.OnLoaded({1, 5});
  EXPECT_EQ(holdings_.epoch(), 0u);
  holdings_.OnLoaded({1, 2});
  EXPECT_EQ(holdings_.epoch(), 6u);
}

TEST_F(HoldingsTest, OrphansGoFirstInTheirOrderAndOnce) {
  holdings_.Assign(MakeAssign(5, {{1, {2, 3, 4}}}));
  EXPECT_EQ(Next(), "1.2");
  for (int router = 0; router < 2; ++router) {  // both say the same
    holdings_.Assign(MakeAssign(5, {{2, {9}}, {1, {4, 2, 0}}, {2, {8}}}, /*also=*/true));
  }
  EXPECT_TRUE(holdings_.UrgentWaits());
  EXPECT_EQ(Next(), "2.9 urgent");
  EXPECT_EQ(Next(), "1.4 urgent");  // waited already, further behind
  EXPECT_EQ(Next(), "2.8 urgent");
  EXPECT_FALSE(holdings_.UrgentWaits());
  EXPECT_EQ(Next(), "1.3");
  EXPECT_EQ(Next(), "");
  for (const ExpertId id : {ExpertId{1, 2}, {1, 3}, {1, 4}}) holdings_.OnLoaded(id);
  EXPECT_EQ(holdings_.epoch(), 5u);  // which does not want the orphans
  holdings_.OnLoaded({2, 9});
  holdings_.OnRouter(&router_);
  holdings_.OnAck(&router_, 5);
  EXPECT_THAT(MayGo(), ElementsAre("1.1", "2.0", "2.1"));      // and 1.0 was wanted in addition
  holdings_.Assign(MakeAssign(4, {{2, {7}}}, /*also=*/true));  // of an epoch that is over
  EXPECT_EQ(Next(), "");
  holdings_.Assign(MakeAssign(6, {{1, {2, 3, 4}}}));
  holdings_.OnAck(&router_, 6);
  EXPECT_THAT(MayGo(), ElementsAre("1.0", "1.1", "2.0", "2.1", "2.9"));
}

TEST_F(HoldingsTest, NothingGoesBeforeEveryRouterHasAcknowledged) {
  holdings_.Assign(MakeAssign(5, {{1, {0, 1}}, {2, {0}}}));
  EXPECT_THAT(MayGo(), IsEmpty());  // nobody says that it is held elsewhere
  holdings_.OnAck(&router_, 5);     // not connected
  EXPECT_THAT(MayGo(), IsEmpty());
  holdings_.OnRouter(&router_);
  holdings_.OnRouter(&other_);
  holdings_.OnAck(&router_, 5);
  EXPECT_THAT(MayGo(), IsEmpty());
  holdings_.OnAck(&other_, 4);
  EXPECT_THAT(MayGo(), IsEmpty());
  holdings_.Forget(&other_);
  EXPECT_THAT(MayGo(), ElementsAre("2.1"));
  holdings_.OnRouter(&other_);  // a new one counts
  EXPECT_THAT(MayGo(), IsEmpty());
  EXPECT_FALSE(holdings_.BeginRemoval({2, 1}));
  holdings_.OnAck(&other_, 7);  // a later one will do
  EXPECT_TRUE(holdings_.BeginRemoval({2, 1}));
  EXPECT_EQ(Held(), "1.0-1 2.0-0 ");
  EXPECT_FALSE(holdings_.BeginRemoval({2, 0}));
  holdings_.OnRemoved({2, 1});
  EXPECT_THAT(MayGo(), IsEmpty());
}

TEST_F(HoldingsTest, WhatIsWantedAgainWhileItGoesIsLoadedAgain) {
  holdings_.OnRouter(&router_);
  holdings_.Assign(MakeAssign(5, {}));
  holdings_.OnAck(&router_, 5);
  ASSERT_TRUE(holdings_.BeginRemoval({1, 0}));
  ASSERT_TRUE(holdings_.BeginRemoval({1, 1}));
  holdings_.Assign(MakeAssign(6, {{1, {0}}}));
  holdings_.Assign(MakeAssign(6, {{1, {1}}}, /*also=*/true));
  EXPECT_EQ(holdings_.epoch(), 5u);
  EXPECT_EQ(Next(), "");  // still on its way out
  holdings_.OnRemoved({1, 0});
  holdings_.OnRemoved({1, 1});
  EXPECT_EQ(Next(), "1.1 urgent");
  EXPECT_EQ(Next(), "1.0");
  holdings_.OnLoaded({1, 0});
  EXPECT_EQ(holdings_.epoch(), 6u);
}

TEST_F(HoldingsTest, FailuresAreToldUntilTheyAreTriedAgain) {
  holdings_.Assign(MakeAssign(5, {{1, {2, 3}}}));
  EXPECT_EQ(Next(), "1.2");
  holdings_.OnFailed({1, 2}, "disk");
  EXPECT_EQ(Failed(), "1.2 disk;");
  LoadAll();
  EXPECT_EQ(holdings_.epoch(), 0u);
  EXPECT_TRUE(holdings_.OnLost({1, 3}, "gone"));
  EXPECT_FALSE(holdings_.OnLost({1, 3}, "gone"));
  EXPECT_EQ(Failed(), "1.2 disk;1.3 gone;");
  holdings_.OnRemoved({1, 3});
  EXPECT_EQ(Failed(), "1.2 disk;1.3 gone;");
  EXPECT_EQ(Next(), "");
  holdings_.Assign(MakeAssign(5, {{1, {3}}}, /*also=*/true));  // once more
  EXPECT_EQ(Failed(), "1.2 disk;");
  LoadAll();
  holdings_.Assign(MakeAssign(6, {{1, {2, 3}}}));
  EXPECT_EQ(Failed(), "");
  LoadAll();
  EXPECT_EQ(holdings_.epoch(), 6u);
}

// Whoever loads may be at something else: until the weights are gone they are not loaded again.
TEST_F(HoldingsTest, WhatWasLostIsLoadedAgainOnceItIsGone) {
  holdings_.Assign(MakeAssign(5, {{1, {0, 1}}}));
  EXPECT_EQ(holdings_.epoch(), 5u);
  EXPECT_TRUE(holdings_.OnLost({1, 0}, "gone"));
  EXPECT_TRUE(holdings_.OnLost({1, 1}, "gone"));
  EXPECT_EQ(Held(), "2.0-1 ");
  holdings_.Assign(MakeAssign(5, {{1, {0}}}, /*also=*/true));
  EXPECT_EQ(Failed(), "1.1 gone;");
  EXPECT_EQ(Next(), "");
  holdings_.Assign(MakeAssign(6, {{1, {1}}}));
  EXPECT_EQ(Failed(), "");
  EXPECT_EQ(Next(), "");
  holdings_.OnRemoved({1, 0});  // wanted no more
  EXPECT_EQ(Next(), "");
  holdings_.OnRemoved({1, 1});
  EXPECT_EQ(Next(), "1.1");
  holdings_.OnLoaded({1, 1});
  EXPECT_EQ(holdings_.epoch(), 6u);
  EXPECT_EQ(Held(), "1.1-1 2.0-1 ");
}

// A router asks somebody else for each of them.
TEST(HoldingsOfMany, AllFailuresAreToldAndTheReasonsOfTheFirst) {
  const ModelSpec spec = testing::MoeSpec({.experts = 100});
  const auto store = *ExpertStore::Open(spec, std::vector<bool>(100, false),
                                        std::make_shared<testing::MemorySource>(spec, 7));
  Holdings holdings(*store);
  pb::Assign assign = MakeAssign(0, {{1, {}}, {2, {}}}, /*also=*/true);
  for (pb::HeldExperts& layer : *assign.mutable_experts()) {
    layer.add_first(0);
    layer.add_last(99);
  }
  holdings.Assign(assign);
  while (const auto next = holdings.NextToLoad()) holdings.OnFailed(next->id, "full");
  pb::Holds holds;
  holdings.FillHolds(&holds);
  ASSERT_EQ(holds.failed_size(), 200);
  EXPECT_EQ(holds.failed(63).why(), "full");
  EXPECT_EQ(holds.failed(64).why(), "");
  EXPECT_EQ(holds.failed(199).expert(), 99u);
}

TEST_F(HoldingsTest, WhatIsNotWantedAnyMoreFailsInSilence) {
  holdings_.Assign(MakeAssign(5, {{1, {2}}}));
  EXPECT_EQ(Next(), "1.2");
  holdings_.Assign(MakeAssign(6, {{1, {0}}}));
  holdings_.OnFailed({1, 2}, "disk");
  EXPECT_EQ(Failed(), "");
}

TEST_F(HoldingsTest, NonsenseIsHarmless) {
  pb::Assign assign = MakeAssign(5, {{0, {1}}, {-1, {1}}, {77, {1}}, {1, {12, 4000000000u}}});
  pb::HeldExperts* ranges = assign.add_experts();
  ranges->set_layer(2);
  ranges->add_first(9), ranges->add_last(3);            // backwards
  ranges->add_first(10), ranges->add_last(4294967295);  // far
  ranges->add_first(3);                                 // no end
  for (int i = 0; i < 100000; ++i) {
    pb::HeldExperts* again = assign.add_experts();
    again->set_layer(2);
    again->add_first(11), again->add_last(11);
  }
  holdings_.Assign(assign);
  EXPECT_EQ(Next(), "2.10");
  EXPECT_EQ(Next(), "2.11");
  EXPECT_EQ(Next(), "");
  EXPECT_FALSE(holdings_.Coming(-1, 3));
  EXPECT_FALSE(holdings_.Coming(1, 4000000000));
}

// The newest epoch wins, whoever says it and when.
TEST_F(HoldingsTest, ManyAssignAtOnce) {
  std::vector<std::thread> routers;
  for (uint32_t r = 0; r < 4; ++r) {
    routers.emplace_back([this, r] {
      const int self = 0;
      holdings_.OnRouter(&self);
      for (uint64_t epoch = 1; epoch <= 200; ++epoch) {
        const auto expert = static_cast<uint32_t>(epoch % 12);
        holdings_.Assign(MakeAssign(epoch, {{1, {expert}}}));
        holdings_.Assign(MakeAssign(epoch, {{2, {(expert + r) % 12}}}, /*also=*/true));
        holdings_.OnAck(&self, epoch);
      }
      holdings_.Forget(&self);
    });
  }
  for (int i = 0; i < 500; ++i) {
    if (const auto next = holdings_.NextToLoad()) holdings_.OnLoaded(next->id);
    for (const ExpertId id : holdings_.MayGo()) {
      if (holdings_.BeginRemoval(id)) holdings_.OnRemoved(id);
    }
  }
  for (std::thread& router : routers) router.join();
  LoadAll();
  EXPECT_EQ(holdings_.assigned_epoch(), 200u);
  EXPECT_EQ(holdings_.epoch(), 200u);
  EXPECT_EQ(holdings_.to_load(), 0u);
}

}  // namespace
}  // namespace switchyard::worker
