// A worker on an emulated device, which computes batches while others are copied.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "expert-worker/device/pinned_rows.h"
#include "expert-worker/worker.h"
#include "tests/support/moe_fixture.h"

namespace switchyard::worker {
namespace {

namespace pb = expertwire::pb;
using expertwire::Answer;
using expertwire::Call;
using ::testing::Each;

struct Sink : expertwire::AnswerSink {
  void OnAnswer(Answer answer) override { answers.push_back(std::move(answer)); }
  void OnComputing(uint64_t, uint32_t) override {}
  std::vector<Answer> answers;
};

class DeviceWorkerTest : public ::testing::Test {
 protected:
  DeviceWorkerTest() { Make(0); }
  void Make(uint64_t memory_experts) {
    worker_.reset();
    const auto make = [this](uint64_t bytes) {
      auto made = Worker::Create(spec_, "f", source_, {.cuda = cuda_, .memory_bytes = bytes});
      EXPECT_TRUE(made.ok()) << made.status();
      return *std::move(made);
    };
    worker_ = make(0);
    if (memory_experts == 0) return;
    const uint64_t one = worker_->held_bytes() / static_cast<uint64_t>(worker_->experts_held());
    worker_ = make(memory_experts * one);
  }

  Call MakeCall(uint64_t id, int layer, expertwire::RowBufferPool& pool) const {
    const uint32_t rows = 70;
    Call call;
    call.call_id = id;
    call.layer = layer;
    call.rows = rows;
    call.hidden = static_cast<uint32_t>(spec_.hidden);
    const testing::MoeBatch batch(spec_, DType::kBF16, rows, static_cast<uint32_t>(id));
    call.payload = pool.Take(rows * call.hidden * 2);
    std::memcpy(call.payload.mutable_data(), batch.x.data(), call.payload.bytes());
    for (uint32_t expert = 0; expert < 5; ++expert) {
      const pb::Result result = expert < 3 ? pb::GROUP_SUMS : pb::ROWS;
      call.segments.push_back(
          {expert, 0, result, static_cast<uint32_t>(call.row_index.size()), rows - expert});
      for (uint32_t r = expert; r < rows; ++r) {
        call.row_index.push_back(r);
        call.weights.push_back(0.5f);
      }
    }
    return call;
  }
  std::vector<Answer> ComputeAll(size_t count) {
    while (sink_->answers.size() < count) {
      EXPECT_TRUE(worker_->Compute());
    }
    return std::exchange(sink_->answers, {});
  }
  Answer Alone(const Call& call) {
    worker_->Accept(call, sink_);
    return std::move(ComputeAll(1)[0]);
  }
  static void ExpectSame(const Answer& a, const Answer& b) {
    EXPECT_EQ(a.call_id, b.call_id);
    EXPECT_THAT(a.status, Each(pb::OK));
    ASSERT_GT(a.payload.bytes(), 0u);
    ASSERT_EQ(a.payload.bytes(), b.payload.bytes());
    EXPECT_EQ(std::memcmp(a.payload.data(), b.payload.data(), a.payload.bytes()), 0);
  }

  const ModelSpec spec_ = testing::MoeSpec({});
  const std::shared_ptr<testing::MemorySource> source_ =
      std::make_shared<testing::MemorySource>(spec_, 7);
  const std::shared_ptr<const device::Cuda> cuda_ = *device::Cuda::Open(SY_EMULATED_PLUGIN, 0);
  const std::shared_ptr<Sink> sink_ = std::make_shared<Sink>();
  std::unique_ptr<Worker> worker_;
  expertwire::RowBufferPool heap_, pinned_{1 << 20, std::make_shared<PinnedRows>(cuda_)};
};

TEST_F(DeviceWorkerTest, TwoBatchesAreOnTheirWayAtOnce) {
  const Call first = MakeCall(1, 1, heap_), second = MakeCall(2, 2, heap_);
  const Answer one = Alone(first), two = Alone(second);
  worker_->Accept(first, sink_);
  EXPECT_TRUE(worker_->Compute());
  worker_->Accept(second, sink_);
  EXPECT_TRUE(worker_->Compute());
  EXPECT_TRUE(sink_->answers.empty());
  EXPECT_FALSE(worker_->Drained());
  worker_->Accept(first, sink_);  // waits for the first of them
  const std::vector<Answer> answers = ComputeAll(3);
  ExpectSame(answers[0], one);
  ExpectSame(answers[1], two);
  ExpectSame(answers[2], one);
  EXPECT_FALSE(worker_->Compute());
  EXPECT_TRUE(worker_->Drained());
  EXPECT_EQ(worker_->counters().computations, 5u);
}

TEST_F(DeviceWorkerTest, RowsInPinnedMemoryAreTakenFromThere) {
  const Call staged = MakeCall(1, 1, heap_), pinned = MakeCall(1, 1, pinned_);
  ASSERT_EQ(pinned.payload.kind(), expertwire::MemoryKind::kPinned);
  const Answer answer = Alone(pinned);
  EXPECT_EQ(answer.payload.kind(), expertwire::MemoryKind::kPinned);
  ExpectSame(answer, Alone(staged));
}

TEST_F(DeviceWorkerTest, ABatchWaitsForTheOtherWhereThereIsNoRoomForBoth) {
  const Call first = MakeCall(1, 1, heap_), second = MakeCall(2, 2, heap_);
  const Answer one = Alone(first), two = Alone(second);
  Make(3);  // and two more
  for (int round = 0; round < 3; ++round) {
    worker_->Accept(first, sink_);
    worker_->Accept(second, sink_);
    const std::vector<Answer> answers = ComputeAll(2);
    ExpectSame(answers[0], one);
    ExpectSame(answers[1], two);
  }
  Make(1);  // not even for one
  ExpectSame(Alone(first), one);
}

}  // namespace
}  // namespace switchyard::worker
