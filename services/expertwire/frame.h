// The frames of the expert wire in memory. Calls and answers are flat: a call's segments index into
// one list of rows. Their lists come from the pool that their rows come from, so that a steady
// stream of frames allocates nothing; where that does not matter they may be of the heap.
// What is not rows is the message of expert.proto itself.
#pragma once

#include <cstdint>
#include <string>
#include <variant>

#include "absl/time/time.h"
#include "services/expertwire/row_buffer.h"
#include "services/tensor/dtype.h"
#include "switchyard/internal/v1/expert.pb.h"

namespace switchyard::expertwire {

namespace pb = ::switchyard::internal::v1;

inline constexpr uint32_t kWireVersion = 1;
// Of what may be said beside calls: frames of later ones are not sent to a peer.
inline constexpr uint32_t kWireRevision = 2;

// The rows of one expert: row_index and weights [begin, begin + count) of the call.
struct Segment {
  uint32_t expert = 0;
  uint32_t version = 0;
  pb::Result result = pb::GROUP_SUMS;
  uint32_t begin = 0;
  uint32_t count = 0;
};

// One part of a call.
struct Call {
  uint64_t call_id = 0;
  uint32_t attempt = 0;
  uint32_t part = 0;
  bool last = true;
  int32_t layer = 0;
  uint32_t model_version = 0;
  uint64_t epoch = 0;
  absl::Time deadline = absl::InfiniteFuture();  // travels as what is left of it
  int32_t priority = 0;
  DType dtype = DType::kBF16;  // of the rows: kBF16 or kF32
  uint32_t rows = 0;
  uint32_t hidden = 0;
  PooledVector<Segment> segments;    // by (expert, result) ascending; they tile row_index
  PooledVector<uint32_t> row_index;  // of the payload's rows; ascending within a segment
  PooledVector<float> weights;       // [row_index]; unused where the segment asks for rows
  std::string trace_id;
  RowBuffer payload;  // [rows, hidden]

  std::string bad;          // set by the decoder: why this part is malformed; answered as BAD
  size_t wire_bytes = 0;    // what it cost its sender in credits; 0 on a local link
  size_t answer_bytes = 0;  // set by the sender: of the answer's payload, whose space it reserves
};

// Whose lists come from `pool`.
inline Call EmptyCall(const RowBufferPool& pool) {
  Call call;
  call.segments = pool.List<Segment>();
  call.row_index = pool.List<uint32_t>();
  call.weights = pool.List<float>();
  return call;
}

struct Answer {
  uint64_t call_id = 0;
  uint32_t attempt = 0;
  uint32_t part = 0;
  bool last = true;
  PooledVector<pb::SegmentStatus> status;  // [segments of the call's part]
  uint64_t queue_us = 0;
  uint64_t compute_us = 0;
  float load = 0;
  uint32_t sums = 0;
  uint32_t rows = 0;
  uint32_t hidden = 0;
  DType dtype = DType::kBF16;  // of the sums
  std::string error;
  RowBuffer payload;  // as AnswerLayout has it

  size_t call_wire_bytes = 0;  // of the call it answers: credits to give back
  size_t wire_bytes = 0;       // its own, set by the decoder
};

// A frame, with the credits that ride on it. Without a body it is of a kind that is not known here.
struct Frame {
  std::variant<std::monostate, pb::Hello, Call, Answer, pb::Cancel, pb::Credit, pb::Progress,
               pb::Drain, pb::MapAck, pb::SharedMemory, pb::Assign, pb::Holds, pb::Prefetch>
      body;
  uint64_t credit_bytes = 0;
  uint32_t credit_frames = 0;
};

}  // namespace switchyard::expertwire
