#include "services/expertwire/codec.h"

#include <gmock/gmock.h>
#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "services/expertwire/layout.h"

namespace switchyard::expertwire {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const absl::Time kNow = absl::FromUnixSeconds(1'000'000);

RowBufferPool& Pool() {
  static RowBufferPool pool;
  return pool;
}

RowBuffer Bytes(std::string_view text) {
  RowBuffer out = Pool().Take(text.size());
  std::memcpy(out.mutable_data(), text.data(), text.size());
  return out;
}

std::string Encode(const Frame& frame) {
  const RowBuffer prefix = EncodePrefix(frame, kNow, Pool()), payload = PayloadOf(frame);
  std::string out(prefix.as<char>(), prefix.bytes());
  out.append(payload.as<char>(), payload.bytes());
  EXPECT_EQ(out.size(), EncodedBytes(frame, prefix));
  return out;
}

absl::StatusOr<Frame> Decode(std::string_view text, const DecodeLimits& limits = {}) {
  return DecodeFrame(Bytes(text), kNow, limits, Pool());
}

// Two rows of four bf16; expert 3 sums row 0 and 1, expert 5 sums row 1 and returns row 0.
Call SmallCall() {
  Call call;
  call.call_id = 77;
  call.attempt = 2;
  call.part = 3;
  call.layer = 9;
  call.epoch = 4;
  call.deadline = kNow + absl::Milliseconds(5);
  call.priority = -1;
  call.rows = 2;
  call.hidden = 4;
  call.segments = {
      {3, 0, pb::GROUP_SUMS, 0, 2}, {5, 0, pb::GROUP_SUMS, 2, 1}, {5, 0, pb::ROWS, 3, 1}};
  call.row_index = {0, 1, 1, 0};
  call.weights = {0.5f, 0.25f, 2.0f, 0.0f};
  call.payload = Bytes("0123456789abcdef");
  return call;
}

TEST(Codec, ACallComesBackAsItWas) {
  const auto frame = Decode(Encode({.body = SmallCall(), .credit_bytes = 5, .credit_frames = 1}));
  ASSERT_TRUE(frame.ok()) << frame.status();
  EXPECT_EQ(frame->credit_bytes, 5u);
  EXPECT_EQ(frame->credit_frames, 1u);
  const Call& call = std::get<Call>(frame->body);
  EXPECT_EQ(call.bad, "");
  EXPECT_EQ(call.call_id, 77u);
  EXPECT_EQ(call.attempt, 2u);
  EXPECT_EQ(call.part, 3u);
  EXPECT_TRUE(call.last);
  EXPECT_EQ(call.layer, 9);
  EXPECT_EQ(call.deadline, kNow + absl::Milliseconds(5));
  EXPECT_EQ(call.priority, -1);
  EXPECT_THAT(call.row_index, ElementsAre(0, 1, 1, 0));
  EXPECT_THAT(call.weights, ElementsAre(0.5f, 0.25f, 2.0f, 0.0f));
  ASSERT_EQ(call.segments.size(), 3u);
  EXPECT_EQ(call.segments[2].result, pb::ROWS);
  EXPECT_EQ(call.segments[2].begin, 3u);
  EXPECT_EQ(std::string(call.payload.as<char>(), call.payload.bytes()), "0123456789abcdef");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(call.payload.data()) % kAlign, 0u);
}

TEST(Codec, AnAnswerComesBackAsItWas) {
  Answer answer;
  answer.call_id = 1;
  answer.status = {pb::OK, pb::NOT_HERE};
  answer.sums = 1;
  answer.rows = 1;
  answer.hidden = 2;
  answer.error = "expert 4 is not here";
  answer.payload = Bytes(std::string(64 + 8, 'x'));
  const auto frame = Decode(Encode({.body = answer}));
  ASSERT_TRUE(frame.ok()) << frame.status();
  const Answer& back = std::get<Answer>(frame->body);
  EXPECT_THAT(back.status, ElementsAre(pb::OK, pb::NOT_HERE));
  EXPECT_EQ(back.payload.bytes(), 72u);
  EXPECT_EQ(back.error, answer.error);
}

TEST(Codec, ControlFramesComeBack) {
  pb::Hello hello;
  hello.set_peer_id("r");
  auto frame = Decode(Encode({.body = hello}));
  ASSERT_TRUE(frame.ok());
  EXPECT_EQ(std::get<pb::Hello>(frame->body).peer_id(), "r");
  pb::Cancel cancel;
  cancel.set_call_id(8);
  frame = Decode(Encode({.body = cancel}));
  ASSERT_TRUE(frame.ok());
  EXPECT_EQ(std::get<pb::Cancel>(frame->body).call_id(), 8u);
  for (const Frame& f :
       {Frame{.body = pb::Credit()}, Frame{.body = pb::Drain()}, Frame{.body = pb::Progress()},
        Frame{.body = pb::MapAck()}, Frame{.body = pb::SharedMemory()}, Frame{.body = pb::Assign()},
        Frame{.body = pb::Holds()}, Frame{.body = pb::Prefetch()}}) {
    frame = Decode(Encode(f));
    ASSERT_TRUE(frame.ok());
    EXPECT_EQ(frame->body.index(), f.body.index());
  }
}

TEST(Codec, WhatAWholeModelsWorkerHoldsFitsAFrame) {
  pb::Holds holds;
  for (int layer = 3; layer < 61; ++layer) {
    pb::HeldExperts* held = holds.add_held();
    held->set_layer(layer);
    for (uint32_t expert = 0; expert < 256; expert += 2) {  // no two of which are a range
      held->add_first(expert);
      held->add_last(expert);
    }
  }
  const std::string bytes = Encode({.body = holds});
  EXPECT_LT(bytes.size(), size_t{32} << 10);
  const auto frame = Decode(bytes);
  ASSERT_TRUE(frame.ok()) << frame.status();
  EXPECT_EQ(std::get<pb::Holds>(frame->body).held_size(), 58);
}

// A field of Frame that no revision has yet, with credits beside it, and a payload.
TEST(Codec, FramesOfUnknownKindsArePassedOver) {
  for (const size_t payload : {0u, 64u}) {
    std::string header("\xfa\x07\x03xyz", 6);  // field 127, 3 bytes
    header += std::string("\x80\x01\x07", 3);  // credit_bytes 7
    std::string bytes("\x09\0\0\0SYW1", 8);
    bytes += header;
    if (payload > 0) bytes.resize(64 + payload);
    const auto frame = Decode(bytes);
    ASSERT_TRUE(frame.ok()) << frame.status();
    EXPECT_TRUE(std::holds_alternative<std::monostate>(frame->body));
    EXPECT_EQ(frame->credit_bytes, 7u);
  }
}

TEST(Codec, UndecodableFramesAreErrors) {
  const std::string good = Encode({.body = SmallCall()});
  EXPECT_FALSE(Decode("").ok());
  EXPECT_FALSE(Decode(good.substr(0, 7)).ok());
  EXPECT_THAT(std::string(Decode(std::string("\4\0\0\0SYW1more", 12)).status().message()),
              HasSubstr("is no Frame"));
  for (size_t size = 0; size < good.size(); ++size) EXPECT_FALSE(Decode(good.substr(0, size)).ok());
  EXPECT_FALSE(Decode(good + "x").ok());
  std::string magic = good;
  magic[4] ^= 1;
  EXPECT_THAT(std::string(Decode(magic).status().message()), HasSubstr("magic"));
  std::string length = good;
  std::memset(length.data(), 0xff, 4);
  EXPECT_FALSE(Decode(length).ok());
  EXPECT_FALSE(Decode(good, {.max_frame_bytes = good.size() - 1}).ok());
  EXPECT_FALSE(Decode(good, {.max_header_bytes = 8}).ok());
}

struct Mutation {
  const char* what;
  void (*apply)(Call*);
  const char* message;
};

TEST(Codec, CallsThatLieAboutTheirPayloadAreErrors) {
  for (const Mutation& m : {
           Mutation{"rows", [](Call* c) { c->rows = 3; }, "3 rows of 4"},
           Mutation{"no rows", [](Call* c) { c->rows = 0; }, "0 rows"},
           Mutation{"overflow", [](Call* c) { c->rows = c->hidden = 0xffffffff; }, "payload"},
           Mutation{"wraps", [](Call* c) { c->rows = 1u << 31, c->hidden = 1u << 30; }, "payload"},
           Mutation{"dtype", [](Call* c) { c->dtype = DType::kF16; }, "row_dtype"},
       }) {
    Call call = SmallCall();
    m.apply(&call);
    const auto frame = Decode(Encode({.body = call}));
    ASSERT_FALSE(frame.ok()) << m.what;
    EXPECT_THAT(std::string(frame.status().message()), HasSubstr(m.message)) << m.what;
  }
}

TEST(Codec, MalformedCallsAreAnsweredNotCrashedOn) {
  for (const Mutation& m : {
           Mutation{"range", [](Call* c) { c->row_index[1] = 2; }, "row 2 of 2"},
           Mutation{"order", [](Call* c) { c->row_index[1] = 0; }, "do not ascend"},
           Mutation{"experts", [](Call* c) { c->segments[0].expert = 9; },
                    "segments do not ascend"},
           Mutation{"twice", [](Call* c) { c->segments[2].result = pb::GROUP_SUMS; }, "ascend"},
           Mutation{"empty", [](Call* c) { c->segments[1].count = 0; }, "no rows"},
           Mutation{"none", [](Call* c) { c->segments.clear(); }, "no segments"},
       }) {
    Call call = SmallCall();
    m.apply(&call);
    const auto frame = Decode(Encode({.body = call}));
    ASSERT_TRUE(frame.ok()) << m.what;
    EXPECT_THAT(std::get<Call>(frame->body).bad, HasSubstr(m.message)) << m.what;
  }
  const auto frame = Decode(Encode({.body = SmallCall()}), {.max_answer_bytes = 63});
  ASSERT_TRUE(frame.ok());
  EXPECT_THAT(std::get<Call>(frame->body).bad, HasSubstr("more than the 63 bytes"));
}

TEST(Codec, AnswersThatLieAboutTheirPayloadAreErrors) {
  Answer answer;
  answer.hidden = 4;
  answer.payload = Bytes("12345678");
  for (const auto& [sums, rows] : {std::pair{2u, 0u}, {0u, 1u}, {~0u, 1u}, {~0u, ~0u}}) {
    answer.sums = sums;
    answer.rows = rows;
    EXPECT_FALSE(Decode(Encode({.body = answer})).ok());
  }
  answer.sums = 1;
  answer.rows = 0;
  EXPECT_TRUE(Decode(Encode({.body = answer})).ok());
}

TEST(Codec, NoiseNeverCrashes) {
  google::protobuf::SetLogHandler(nullptr);  // it tells of every field that is no UTF-8
  const std::string good = Encode({.body = SmallCall()});
  std::mt19937 random(11);
  int decoded = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = good;
    for (uint32_t flips = 1 + random() % 4; flips > 0; --flips) {
      bytes[8 + random() % (bytes.size() - 8)] = static_cast<char>(random());
    }
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    const auto frame = Decode(bytes);
    if (!frame.ok()) continue;
    ++decoded;
    if (const Call* call = std::get_if<Call>(&frame->body); call && call->bad.empty()) {
      AnswerLayout layout;
      LayOutAnswer(call->segments, call->row_index, 2, &layout);
      EXPECT_LE(layout.sums + layout.rows, call->row_index.size());
    }
  }
  EXPECT_GT(decoded, 100);  // the noise reaches what is behind the header
}

TEST(Layout, SumsByGroupAndRowThenRowsBySegment) {
  // Groups of two: experts 2, 3 are group 1 and share row 4; expert 5 is of group 2.
  const std::vector<Segment> segments = {{2, 0, pb::GROUP_SUMS, 0, 2},
                                         {2, 0, pb::ROWS, 2, 1},
                                         {3, 0, pb::GROUP_SUMS, 3, 2},
                                         {5, 0, pb::GROUP_SUMS, 5, 1},
                                         {5, 0, pb::ROWS, 6, 2}};
  const std::vector<uint32_t> rows = {1, 4, 0, 4, 7, 2, 3, 5};
  AnswerLayout layout;
  LayOutAnswer(segments, rows, 2, &layout);
  EXPECT_EQ(layout.sums, 4u);  // (1, 1), (1, 4), (1, 7), (2, 2)
  EXPECT_EQ(layout.rows, 3u);
  EXPECT_THAT(layout.slot, ElementsAre(0, 1, 0, 1, 2, 3, 1, 2));
  EXPECT_EQ(layout.rows_offset(3, DType::kBF16), 64u);
  EXPECT_EQ(layout.bytes(3, DType::kBF16), 64u + 3 * 3 * 4);
}

}  // namespace
}  // namespace switchyard::expertwire
