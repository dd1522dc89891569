#include "router/dispatch/hints.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/dispatch_harness.h"
#include "tests/support/simulated_link.h"

namespace switchyard::router {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::SimulatedLink;

struct Holder {
  const char* experts;
  int memory = 0;  // of how many experts; 0: of all
};

constexpr uint64_t kExpertBytes = 3 * 64 * 32 * 2;

// Workers of twelve experts in each of two layers, and a dispatcher over them.
class HintsTest : public ::testing::Test {
 protected:
  void Start(const std::vector<Holder>& holders) {
    for (const Holder& holder : holders) {
      workers_.push_back(
          testing::MakeWorker(spec_,
                              {.experts = holder.experts,
                               .memory_bytes = static_cast<uint64_t>(holder.memory) * kExpertBytes},
                              &pool_));
      auto link =
          std::make_unique<SimulatedLink>("w" + std::to_string(sims_.size()), *workers_.back());
      sims_.push_back(link.get());
      links_.Add(std::move(link));
    }
    dispatcher_ = std::make_unique<LinkDispatcher>(spec_, DType::kBF16, links_, pool_,
                                                   DispatchOptions{.now = &testing::VirtualNow});
  }
  // What a link was told of a layer, all hints together.
  std::vector<uint32_t> Told(size_t link, int layer) const {
    std::vector<uint32_t> out;
    for (const auto& hint : sims_[link]->hints()) {
      if (hint.layer() == layer) {
        out.insert(out.end(), hint.experts().begin(), hint.experts().end());
      }
    }
    return out;
  }

  const ModelSpec spec_ = testing::MoeSpec({});
  kernels::ThreadPool pool_{1};
  std::vector<std::unique_ptr<worker::Worker>> workers_;
  std::vector<SimulatedLink*> sims_;
  expertwire::LinkSet links_{{.hello = {}}};
  std::unique_ptr<LinkDispatcher> dispatcher_;
};

TEST_F(HintsTest, ToldAreHoldersThatAreShortOfMemoryAlone) {
  Start({{.experts = "0-7", .memory = 15}, {.experts = "4-11"}, {.experts = "6-11", .memory = 11}});
  ASSERT_TRUE(dispatcher_->WantsHints());
  dispatcher_->Hint(2, std::vector<int32_t>{9, 7, 1, 4});
  EXPECT_THAT(Told(0, 2), ElementsAre(7, 1, 4));
  EXPECT_THAT(Told(1, 2), IsEmpty());
  EXPECT_THAT(Told(2, 2), ElementsAre(9, 7));
  EXPECT_EQ(sims_[0]->hints().size(), 1u);
  const std::vector<LinkReport> report = dispatcher_->Links();
  EXPECT_EQ(report[0].hints, 3u);
  EXPECT_EQ(report[1].hints, 0u);
  EXPECT_EQ(report[2].hints, 2u);
  dispatcher_->Hint(1, std::vector<int32_t>{10});
  EXPECT_EQ(sims_[0]->hints().size(), 1u) << "nothing to say is not said";
  EXPECT_THAT(Told(2, 1), ElementsAre(10));
}

TEST_F(HintsTest, NobodyIsToldWhereAllFits) {
  Start({{.experts = "0-5", .memory = 12}, {.experts = "6-11"}});
  EXPECT_FALSE(dispatcher_->WantsHints());
  dispatcher_->Hint(1, std::vector<int32_t>{0, 6});
  EXPECT_THAT(sims_[0]->hints(), IsEmpty());
  EXPECT_THAT(sims_[1]->hints(), IsEmpty());
}

TEST_F(HintsTest, TheMostWantedThatHalfOfTheMemoryTakes) {
  Start({{.experts = "", .memory = 7}});
  dispatcher_->Hint(1, std::vector<int32_t>{11, 3, 8, 0, 1, 2});
  EXPECT_THAT(Told(0, 1), ElementsAre(11, 3, 8));
}

TEST_F(HintsTest, AtLeastOne) {
  Start({{.experts = "", .memory = 1}});
  dispatcher_->Hint(1, std::vector<int32_t>{11, 3});
  EXPECT_THAT(Told(0, 1), ElementsAre(11));
}

TEST_F(HintsTest, AWorkerThatIsAwayIsNotTold) {
  Start({{.experts = "", .memory = 7}, {.experts = ""}});
  sims_[0]->Fall();
  testing::MoeBatch batch(spec_, DType::kBF16, 1, 1);
  const auto start = [&] {
    const MoeTicket ticket = dispatcher_->Start({.layer = 1,
                                                 .tokens = 1,
                                                 .top_k = spec_.gate.top_k,
                                                 .x = {batch.x.data(), DType::kBF16, spec_.hidden},
                                                 .experts = batch.experts.data(),
                                                 .weights = batch.weights.data(),
                                                 .out = batch.out.data(),
                                                 .lost = batch.lost.data()});
    dispatcher_->Abandon(ticket);
  };
  start();  // looks who is there
  EXPECT_FALSE(dispatcher_->WantsHints());
  sims_[0]->Rise();
  start();
  EXPECT_TRUE(dispatcher_->WantsHints());
}

}  // namespace
}  // namespace switchyard::router
