#include "services/expertwire/two_lanes.h"

#include <gtest/gtest.h>

#include "services/base/status.h"

namespace switchyard::expertwire {
namespace {

class FakeLane : public ExpertLink {
 public:
  explicit FakeLane(std::string name) : name_(std::move(name)) {}
  const std::string& name() const override { return name_; }
  LinkState state() const override { return now; }
  absl::Status why() const override {
    return now == LinkState::kUp ? absl::OkStatus() : Unavailable("{}", name_);
  }
  std::shared_ptr<const pb::Hello> peer() const override { return nullptr; }
  uint64_t generation() const override { return changes; }
  LinkStats stats() const override {
    return {.frames_sent = calls.size(), .shares_memory = shares_memory};
  }
  bool suspect() const override { return silent; }
  bool Computing(uint64_t, uint32_t) override { return false; }
  size_t max_part_bytes() const override { return 1 << 20; }
  bool borrows_rows() const override { return false; }
  absl::Status Send(Call part) override {
    calls.push_back(part.call_id);
    return absl::OkStatus();
  }
  void Cancel(uint64_t call_id, uint32_t) override { cancelled.push_back(call_id); }
  void Assign(pb::Assign assign) override { assigned.push_back(assign.epoch()); }
  void AckEpoch(uint64_t epoch) override { acked.push_back(epoch); }
  void Prefetch(pb::Prefetch prefetch) override { prefetched.push_back(prefetch.layer()); }
  bool Poll(std::vector<LinkEvent>* events) override {
    for (LinkEvent& event : came) events->push_back(std::move(event));
    return !std::exchange(came, {}).empty();
  }

  LinkState now = LinkState::kUp;
  uint64_t changes = 1;
  bool silent = false;
  bool shares_memory = true;
  std::vector<uint64_t> calls, cancelled, assigned, acked;
  std::vector<int32_t> prefetched;
  std::vector<LinkEvent> came;

 private:
  const std::string name_;
};

class TwoLanesTest : public ::testing::Test {
 protected:
  static Call Part(uint64_t id, size_t bytes, size_t answer_bytes) {
    static RowBufferPool pool;
    Call call;
    call.call_id = id;
    call.payload = pool.Take(bytes);
    call.answer_bytes = answer_bytes;
    return call;
  }
  FakeLane* const quick_ = new FakeLane("quick");
  FakeLane* const bulk_ = new FakeLane("bulk");
  TwoLanes link_{std::unique_ptr<ExpertLink>(quick_), std::unique_ptr<ExpertLink>(bulk_)};
};

TEST_F(TwoLanesTest, TheLargerWaySaysWhichLane) {
  EXPECT_TRUE(link_.Send(Part(1, kBulkBytes, kBulkBytes)).ok());
  EXPECT_TRUE(link_.Send(Part(2, kBulkBytes + 1, 64)).ok());
  EXPECT_TRUE(link_.Send(Part(3, 64, kBulkBytes + 1)).ok());
  EXPECT_EQ(quick_->calls, std::vector<uint64_t>({1}));
  EXPECT_EQ(bulk_->calls, std::vector<uint64_t>({2, 3}));
  EXPECT_EQ(link_.stats().frames_sent, 3u);
  link_.Cancel(2, 0);
  EXPECT_EQ(quick_->cancelled, std::vector<uint64_t>({2}));
  EXPECT_EQ(bulk_->cancelled, std::vector<uint64_t>({2}));
}

TEST_F(TwoLanesTest, PlacementsAreSpokenOfOverTheQuickLane) {
  pb::Assign assign;
  assign.set_epoch(3);
  link_.Assign(assign);
  link_.AckEpoch(4);
  pb::Prefetch prefetch;
  prefetch.set_layer(5);
  link_.Prefetch(prefetch);
  EXPECT_EQ(quick_->assigned, std::vector<uint64_t>({3}));
  EXPECT_EQ(quick_->acked, std::vector<uint64_t>({4}));
  EXPECT_EQ(quick_->prefetched, std::vector<int32_t>({5}));
  EXPECT_TRUE(bulk_->assigned.empty() && bulk_->acked.empty() && bulk_->prefetched.empty());
}

TEST_F(TwoLanesTest, IsUpWhileBothAre) {
  EXPECT_EQ(link_.state(), LinkState::kUp);
  EXPECT_TRUE(link_.why().ok());
  for (FakeLane* lane : {quick_, bulk_}) {
    for (LinkState other : {LinkState::kConnecting, LinkState::kDraining, LinkState::kRefused}) {
      lane->now = other;
      EXPECT_EQ(link_.state(), other);
      EXPECT_EQ(link_.why().message(), lane->name());
    }
    lane->now = LinkState::kUp;
  }
  bulk_->shares_memory = false;
  EXPECT_FALSE(link_.stats().shares_memory);
}

// A part that was sent before the end has at most the end's generation, one sent after it more.
TEST_F(TwoLanesTest, AnEndIsOfAllThatWasSentBefore) {
  quick_->changes = 5, bulk_->changes = 7;
  const uint64_t before = link_.generation();
  bulk_->came.push_back(LinkDown{"gone", 7});
  bulk_->changes = 8;
  std::vector<LinkEvent> events;
  ASSERT_TRUE(link_.Poll(&events));
  ASSERT_EQ(events.size(), 1u);
  const auto& down = std::get<LinkDown>(events[0]);
  EXPECT_GE(down.generation, before);
  EXPECT_LT(down.generation, link_.generation());
  EXPECT_FALSE(link_.Poll(&events));
}

TEST_F(TwoLanesTest, AnswersComeOverBoth) {
  quick_->came.push_back(Answer{.call_id = 1});
  bulk_->came.push_back(Answer{.call_id = 2});
  std::vector<LinkEvent> events;
  ASSERT_TRUE(link_.Poll(&events));
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(std::get<Answer>(events[0]).call_id, 1u);
  EXPECT_EQ(std::get<Answer>(events[1]).call_id, 2u);
}

}  // namespace
}  // namespace switchyard::expertwire
