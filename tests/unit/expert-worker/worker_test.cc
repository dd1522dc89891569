#include "expert-worker/worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "expert-worker/held_weights.h"
#include "expert-worker/store/expert_set.h"
#include "tests/support/moe_fixture.h"

namespace switchyard::worker {
namespace {

namespace pb = expertwire::pb;
using expertwire::Answer;
using expertwire::Call;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::MemorySource;

std::string Held(std::string_view text, int experts = 8, int group = 1) {
  const auto set = ParseExpertSet(text, experts, group);
  if (!set.ok()) return std::string(set.status().message());
  std::string out;
  for (bool held : *set) out += held ? '1' : '0';
  return out;
}

TEST(ExpertSet, RangesAndParts) {
  EXPECT_EQ(Held(""), "11111111");
  EXPECT_EQ(Held("0-2, 7"), "11100001");
  EXPECT_EQ(Held("0/3"), "11000000");
  EXPECT_EQ(Held("1/3"), "00111000");
  EXPECT_EQ(Held("2/3"), "00000111");
  EXPECT_EQ(Held("0/3", 8, 2), "11000000");  // cut between groups
  EXPECT_EQ(Held("1/3", 8, 2), "00110000");
  EXPECT_EQ(Held("2/3", 8, 2), "00001111");
  for (const char* bad :
       {"8", "3-1", "a", "1-", "-1", "1,,2", "3/3", "0/9", "0/0", "/", "1/2/3", "99999999999"}) {
    EXPECT_THAT(Held(bad), HasSubstr(bad));
  }
}

TEST(CheckMemory, NamesWhatIsNeededAndWhatThereIs) {
  EXPECT_TRUE(CheckMemory(100, 100, "0-3").ok());
  EXPECT_TRUE(CheckMemory(100, 0, "0-3").ok());  // unknown
  const absl::Status full = CheckMemory(3 << 20, 2 << 20, "0-3");
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("experts 0-3 take 3.0 MiB"));
  EXPECT_THAT(std::string(full.message()), HasSubstr("2.0 MiB of memory"));
}

struct Sink : expertwire::AnswerSink {
  void OnAnswer(Answer answer) override { answers.push_back(std::move(answer)); }
  void OnComputing(uint64_t, uint32_t) override {}
  std::vector<Answer> answers;
};

class WorkerTest : public ::testing::Test {
 protected:
  void Make(const std::string& experts, size_t merge_bytes = 64u << 20) {
    auto made =
        Worker::Create(spec_, "f", source_, {.experts = experts, .merge_bytes = merge_bytes});
    ASSERT_TRUE(made.ok()) << made.status();
    worker_ = *std::move(made);
  }

  Call MakeCall(uint64_t id, std::vector<uint32_t> experts, uint32_t rows = 2, int layer = 1) {
    static expertwire::RowBufferPool pool;
    Call call;
    call.call_id = id;
    call.layer = layer;
    call.rows = rows;
    call.hidden = static_cast<uint32_t>(spec_.hidden);
    const testing::MoeBatch batch(spec_, DType::kBF16, rows, static_cast<uint32_t>(id));
    call.payload = pool.Take(rows * call.hidden * 2);
    std::memcpy(call.payload.mutable_data(), batch.x.data(), call.payload.bytes());
    for (uint32_t expert : experts) {
      call.segments.push_back(
          {expert, 0, pb::GROUP_SUMS, static_cast<uint32_t>(call.row_index.size()), rows});
      for (uint32_t r = 0; r < rows; ++r) call.row_index.push_back(r);
    }
    call.weights.assign(call.row_index.size(), 0.5f);
    return call;
  }

  Answer Alone(const Call& call) {
    worker_->Accept(call, sink_);
    EXPECT_TRUE(worker_->Compute());
    EXPECT_EQ(sink_->answers.size(), 1u);
    Answer answer = std::move(sink_->answers.at(0));
    sink_->answers.clear();
    return answer;
  }

  // `second` arrives later, and is the more urgent.
  void ExpectSecondIsComputedFirst(Call first, Call second) {
    second.priority = 5;
    const uint64_t id = second.call_id;
    worker_->Accept(std::move(first), sink_);
    worker_->Accept(std::move(second), sink_);
    EXPECT_TRUE(worker_->Compute());
    ASSERT_EQ(sink_->answers.size(), 1u);
    EXPECT_EQ(sink_->answers[0].call_id, id);
  }

  const ModelSpec spec_ = testing::MoeSpec({});
  const std::shared_ptr<MemorySource> source_ = std::make_shared<MemorySource>(spec_, 7);
  const std::shared_ptr<Sink> sink_ = std::make_shared<Sink>();
  std::unique_ptr<Worker> worker_;
};

TEST_F(WorkerTest, MapsItsOwnExpertsAndNoOthers) {
  Make("3,5");
  EXPECT_EQ(worker_->experts_held(), 4);  // of two layers
  EXPECT_EQ(source_->mapped.size(), 4u * 3);
  for (const auto& range : source_->mapped) {
    EXPECT_TRUE(range.name.find("experts.3.") != std::string::npos ||
                range.name.find("experts.5.") != std::string::npos);
  }
  const pb::Hello hello = worker_->hello();
  ASSERT_EQ(hello.held_size(), 2);
  EXPECT_THAT(hello.held(0).first(), ElementsAre(3, 5));
  EXPECT_THAT(hello.held(0).last(), ElementsAre(3, 5));
}

// 72,000 pairs of 32 values between gate and down are more than a tile.
TEST_F(WorkerTest, ComputesManyRowsTileByTile) {
  Make("");
  constexpr uint32_t kRows = 6000;
  const std::vector<uint32_t> experts = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  const Answer all = Alone(MakeCall(1, experts, kRows));
  ASSERT_EQ(all.sums, kRows * experts.size());
  for (const uint32_t e : {0u, 7u, 11u}) {
    const Answer one = Alone(MakeCall(1, {e}, kRows));
    ASSERT_EQ(one.sums, kRows);
    const std::byte* there = all.payload.data() + e * one.payload.bytes();
    EXPECT_EQ(std::memcmp(there, one.payload.data(), one.payload.bytes()), 0);
  }
}

TEST_F(WorkerTest, AnswersWhatItCannotDoBySegment) {
  Make("0-5");
  const Answer answer = Alone(MakeCall(1, {2, 8}));
  EXPECT_THAT(answer.status, ElementsAre(pb::OK, pb::NOT_HERE));
  EXPECT_THAT(answer.error, HasSubstr("expert 8"));
  EXPECT_EQ(answer.sums, 4u);
  const auto* sums = answer.payload.as<uint16_t>();
  EXPECT_TRUE(std::any_of(sums, sums + 2 * 64, [](uint16_t v) { return v != 0; }));
  EXPECT_TRUE(std::all_of(sums + 2 * 64, sums + 4 * 64, [](uint16_t v) { return v == 0; }));

  const Answer none = Alone(MakeCall(2, {8, 9}));
  EXPECT_THAT(none.status, Each(pb::NOT_HERE));
  EXPECT_EQ(none.payload.bytes(), 0u);
  EXPECT_THAT(Alone(MakeCall(3, {1}, 2, /*layer=*/77)).status, Each(pb::NOT_HERE));
}

TEST_F(WorkerTest, AnswersBadWhatIsNotThisModels) {
  Make("");
  EXPECT_THAT(Alone(MakeCall(1, {2, 99})).error, HasSubstr("expert 99 of 12"));
  Call narrow = MakeCall(2, {2});
  narrow.hidden = 32;
  EXPECT_THAT(Alone(narrow).status, Each(pb::BAD));
  Call dtype = MakeCall(3, {2});
  dtype.dtype = DType::kF32;
  EXPECT_THAT(Alone(dtype).error, HasSubstr("float32"));
  Call bad = MakeCall(4, {2});
  bad.bad = "row 9 of 2";
  EXPECT_THAT(Alone(bad).error, HasSubstr("row 9 of 2"));
}

TEST_F(WorkerTest, ExpiredCallsAreNotComputed) {
  Make("");
  Call late = MakeCall(1, {2});
  late.deadline = absl::Now() - absl::Seconds(1);
  EXPECT_THAT(Alone(late).status, Each(pb::EXPIRED));
  EXPECT_EQ(worker_->counters().rows, 0u);
  EXPECT_EQ(worker_->counters().segments[pb::EXPIRED], 1u);
}

TEST_F(WorkerTest, MergingChangesNoBit) {
  for (const size_t merge_bytes : {size_t{64} << 20, size_t{1000}}) {
    Make("", merge_bytes);
    std::vector<Call> calls;
    for (uint64_t id = 1; id <= 6; ++id) {
      calls.push_back(MakeCall(id, {static_cast<uint32_t>(id % 3), 5, 7}, 1 + id % 4));
    }
    std::vector<Answer> alone;
    for (const Call& call : calls) alone.push_back(Alone(call));
    for (const Call& call : calls) worker_->Accept(call, sink_);
    while (worker_->Compute()) {
    }
    ASSERT_EQ(sink_->answers.size(), calls.size());
    for (const Answer& merged : sink_->answers) {
      const Answer& before = alone[merged.call_id - 1];
      ASSERT_EQ(merged.payload.bytes(), before.payload.bytes());
      EXPECT_EQ(std::memcmp(merged.payload.data(), before.payload.data(), before.payload.bytes()),
                0);
    }
    EXPECT_EQ(worker_->counters().parts_merged > 0, merge_bytes > 1000);
    sink_->answers.clear();
  }
}

TEST_F(WorkerTest, CancelAndForgetDropWhatWaits) {
  Make("");
  const auto other = std::make_shared<Sink>();
  worker_->Accept(MakeCall(1, {2}), sink_);
  worker_->Accept(MakeCall(2, {2}), sink_);
  worker_->Accept(MakeCall(1, {2}), other);
  EXPECT_EQ(worker_->Cancel(sink_.get(), 1, 0).parts, 1u);
  EXPECT_EQ(worker_->Cancel(sink_.get(), 2, 7).parts, 0u);  // another attempt
  worker_->Forget(other.get());
  while (worker_->Compute()) {
  }
  ASSERT_EQ(sink_->answers.size(), 1u);
  EXPECT_EQ(sink_->answers[0].call_id, 2u);
  EXPECT_TRUE(other->answers.empty());
  EXPECT_TRUE(worker_->Drained());
}

TEST_F(WorkerTest, UrgentLayersGoFirst) {
  Make("");
  ExpectSecondIsComputedFirst(MakeCall(1, {2}, 1, 1), MakeCall(2, {2}, 1, 2));
}

TEST_F(WorkerTest, TheUrgentPartIsInTheBatchThatIsTakenForIt) {
  Make("", /*merge_bytes=*/1);  // one part a batch
  ExpectSecondIsComputedFirst(MakeCall(1, {2}), MakeCall(2, {2}));
}

}  // namespace
}  // namespace switchyard::worker
