// The loader's thread, and what is told to it while it is busy.
#include "expert-worker/store/loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/base/status.h"
#include "tests/support/faulty_source.h"

namespace switchyard::worker {
namespace {

namespace pb = expertwire::pb;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Layers 1 and 2 of 12 experts, of which 0 and 1 are held.
class LoaderTest : public ::testing::Test {
 protected:
  ~LoaderTest() override { source_->HoldUp(false); }  // whatever failed, the thread ends

  static std::vector<bool> FirstTwo() {
    std::vector<bool> held(12, false);
    held[0] = held[1] = true;
    return held;
  }
  // Wants these of layer 1.
  void Assign(uint64_t epoch, const std::vector<uint32_t>& experts) {
    pb::Assign assign;
    assign.set_epoch(epoch);
    pb::HeldExperts* layer = assign.add_experts();
    layer->set_layer(1);
    for (const uint32_t e : experts) {
      layer->add_first(e);
      layer->add_last(e);
    }
    holdings_.Assign(assign);
    loader_.Wake();
  }
  pb::Holds Holds() const {
    pb::Holds holds;
    holdings_.FillHolds(&holds);
    return holds;
  }
  // The ranges of layer 1.
  std::vector<std::string> Held() const {
    const pb::Holds holds = Holds();
    std::vector<std::string> out;
    for (const auto& layer : holds.held()) {
      for (int i = 0; layer.layer() == 1 && i < layer.first_size(); ++i) {
        out.push_back(fmt::format("{}-{}", layer.first(i), layer.last(i)));
      }
    }
    return out;
  }
  template <typename Condition>
  static bool Until(Condition done) {
    const absl::Time bound = absl::Now() + absl::Seconds(20);
    while (!done() && absl::Now() < bound) std::this_thread::yield();
    return done();
  }

  const ModelSpec spec_ = testing::MoeSpec({});
  const std::shared_ptr<testing::FaultySource> source_ =
      std::make_shared<testing::FaultySource>(spec_, 7);
  const std::unique_ptr<ExpertStore> store_ = *ExpertStore::Open(spec_, FirstTwo(), source_);
  Holdings holdings_{*store_};
  HostMemory memory_{*store_};
  Tiers tiers_{*store_, memory_, {}};
  Loader loader_{*store_, holdings_, tiers_, {}};
};

TEST_F(LoaderTest, WhatIsLostIsHeldNoMoreAlsoWhileAReadHangs) {
  source_->HoldUp(true);
  Assign(5, {0, 1, 2});
  source_->AwaitReader();
  for (int i = 0; i < 3; ++i) loader_.OnLost({1, 0}, DataLoss("gone"));  // three computations
  EXPECT_THAT(Held(), ElementsAre("1-1"));
  ASSERT_EQ(Holds().failed_size(), 1);
  EXPECT_EQ(Holds().failed(0).why(), "gone");
  EXPECT_EQ(loader_.counters().failed, 1u);
  EXPECT_NE(store_->Find(1, 0), nullptr);  // of the thread

  Assign(6, {0, 1, 2});  // it may have been mended
  EXPECT_EQ(holdings_.epoch(), 0u);
  source_->HoldUp(false);
  ASSERT_TRUE(Until([&] { return holdings_.epoch() == 6; }));
  EXPECT_THAT(Held(), ElementsAre("0-2"));
  EXPECT_NE(store_->Find(1, 0), nullptr);
  EXPECT_THAT(Holds().failed(), IsEmpty());
  EXPECT_EQ(loader_.counters().loaded, 2u);
}

}  // namespace
}  // namespace switchyard::worker
