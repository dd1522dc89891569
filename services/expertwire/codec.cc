#include "services/expertwire/codec.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>

#include "services/base/status.h"
#include "services/expertwire/layout.h"

namespace switchyard::expertwire {
namespace {

constexpr uint32_t kMagic = 0x31575953;  // "SYW1"
constexpr size_t kPrefixBytes = 8;

void StoreU32(uint32_t value, std::byte* out) {
  for (int i = 0; i < 4; ++i) out[i] = static_cast<std::byte>(value >> (8 * i));
}

uint32_t LoadU32(const std::byte* in) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= static_cast<uint32_t>(in[i]) << (8 * i);
  return value;
}

absl::StatusOr<DType> RowDType(std::string_view name) {
  if (name == Name(DType::kBF16)) return DType::kBF16;
  if (name == Name(DType::kF32)) return DType::kF32;
  return InvalidArgument("row_dtype \"{}\" is not supported; supported: bfloat16, float32",
                         name.substr(0, 32));
}

// A header in memory of the pool's: about `expected` bytes of it; what is more is the heap's.
class Header {
 public:
  Header(RowBufferPool& pool, size_t expected)
      : memory_(pool.Take(std::clamp(expected, kLeast, kMost))),
        arena_(reinterpret_cast<char*>(memory_.mutable_data()), memory_.bytes()),
        frame_(google::protobuf::Arena::CreateMessage<pb::Frame>(&arena_)) {}
  pb::Frame* operator->() { return frame_; }
  pb::Frame* get() { return frame_; }

 private:
  static constexpr size_t kLeast = size_t{4} << 10, kMost = size_t{1} << 20;

  RowBuffer memory_;
  google::protobuf::Arena arena_;
  pb::Frame* const frame_;
};

// ---- encoding ----

// What the message of a call or an answer takes in memory, roughly.
size_t MessageBytes(const Frame& frame) {
  if (const Call* call = std::get_if<Call>(&frame.body)) {
    return 1024 + call->segments.size() * 192 + call->row_index.size() * 8;
  }
  if (const Answer* answer = std::get_if<Answer>(&frame.body)) {
    return 1024 + answer->status.size() * 4;
  }
  return 0;
}

void FillCall(const Call& call, absl::Time now, pb::Call* out) {
  out->set_call_id(call.call_id);
  out->set_attempt(call.attempt);
  out->set_part(call.part);
  out->set_last(call.last);
  out->set_layer(call.layer);
  out->set_model_version(call.model_version);
  out->set_epoch(call.epoch);
  if (call.deadline != absl::InfiniteFuture()) {
    out->set_deadline_left_us(std::max<int64_t>(1, absl::ToInt64Microseconds(call.deadline - now)));
  }
  out->set_priority(call.priority);
  out->set_row_dtype(std::string(Name(call.dtype)));
  out->set_rows(call.rows);
  out->set_hidden(call.hidden);
  out->set_trace_id(call.trace_id);
  out->mutable_segments()->Reserve(static_cast<int>(call.segments.size()));
  for (const Segment& segment : call.segments) {
    pb::Segment* s = out->add_segments();
    s->set_expert(segment.expert);
    s->set_version(segment.version);
    s->set_result(segment.result);
    const uint32_t* rows = call.row_index.data() + segment.begin;
    s->mutable_rows()->Add(rows, rows + segment.count);
    if (segment.result == pb::GROUP_SUMS) {
      const float* weights = call.weights.data() + segment.begin;
      s->mutable_weights()->Add(weights, weights + segment.count);
    }
  }
}

void FillAnswer(const Answer& answer, pb::Answer* out) {
  out->set_call_id(answer.call_id);
  out->set_attempt(answer.attempt);
  out->set_part(answer.part);
  out->set_last(answer.last);
  out->mutable_status()->Add(answer.status.begin(), answer.status.end());
  out->set_queue_us(answer.queue_us);
  out->set_compute_us(answer.compute_us);
  out->set_load(answer.load);
  out->set_sums(answer.sums);
  out->set_rows(answer.rows);
  out->set_hidden(answer.hidden);
  out->set_row_dtype(std::string(Name(answer.dtype)));
  out->set_error(answer.error);
}

struct Filler {
  absl::Time now;
  pb::Frame* out;

  void operator()(std::monostate) const {}
  void operator()(const Call& body) const { FillCall(body, now, out->mutable_call()); }
  void operator()(const Answer& body) const { FillAnswer(body, out->mutable_answer()); }
  void operator()(const pb::Hello& body) const { *out->mutable_hello() = body; }
  void operator()(const pb::Cancel& body) const { *out->mutable_cancel() = body; }
  void operator()(const pb::Credit& body) const { *out->mutable_credit() = body; }
  void operator()(const pb::Progress& body) const { *out->mutable_progress() = body; }
  void operator()(const pb::Drain& body) const { *out->mutable_drain() = body; }
  void operator()(const pb::MapAck& body) const { *out->mutable_map_ack() = body; }
  void operator()(const pb::SharedMemory& body) const { *out->mutable_shared_memory() = body; }
  void operator()(const pb::Assign& body) const { *out->mutable_assign() = body; }
  void operator()(const pb::Holds& body) const { *out->mutable_holds() = body; }
  void operator()(const pb::Prefetch& body) const { *out->mutable_prefetch() = body; }
};

// ---- decoding ----

// Why a call's segments are malformed; empty if they are not. Copies the well-formed ones.
std::string TakeSegments(const pb::Call& in, const DecodeLimits& limits, Call* call) {
  if (in.segments_size() == 0) return "no segments";
  if (static_cast<size_t>(in.segments_size()) > limits.max_segments) {
    return fmt::format("{} segments; at most {}", in.segments_size(), limits.max_segments);
  }
  size_t pairs = 0;
  for (const pb::Segment& s : in.segments()) pairs += static_cast<size_t>(s.rows_size());
  if (pairs > limits.max_answer_bytes / sizeof(float) / in.hidden()) {
    return fmt::format("{} rows are asked for, more than the {} bytes of an answer hold", pairs,
                       limits.max_answer_bytes);
  }
  call->row_index.reserve(pairs);
  call->weights.reserve(pairs);
  for (int i = 0; i < in.segments_size(); ++i) {
    const pb::Segment& s = in.segments(i);
    const auto bad = [&](std::string_view what) {
      return fmt::format("segment {} (expert {}): {}", i, s.expert(), what);
    };
    if (s.result() != pb::GROUP_SUMS && s.result() != pb::ROWS) return bad("unknown result");
    if (i > 0) {
      const pb::Segment& before = in.segments(i - 1);
      if (std::pair(before.expert(), before.result()) >= std::pair(s.expert(), s.result())) {
        return bad("segments do not ascend by expert");
      }
    }
    if (s.rows_size() == 0) return bad("no rows");
    if (s.weights_size() != (s.result() == pb::GROUP_SUMS ? s.rows_size() : 0)) {
      return bad(fmt::format("{} weights for {} rows", s.weights_size(), s.rows_size()));
    }
    for (int r = 0; r < s.rows_size(); ++r) {
      if (s.rows(r) >= in.rows()) return bad(fmt::format("row {} of {}", s.rows(r), in.rows()));
      if (r > 0 && s.rows(r) <= s.rows(r - 1)) return bad("rows do not ascend");
    }
    call->segments.push_back({s.expert(), s.version(), s.result(),
                              static_cast<uint32_t>(call->row_index.size()),
                              static_cast<uint32_t>(s.rows_size())});
    call->row_index.insert(call->row_index.end(), s.rows().begin(), s.rows().end());
    call->weights.insert(call->weights.end(), s.weights().begin(), s.weights().end());
    call->weights.resize(call->row_index.size());
  }
  return "";
}

absl::StatusOr<Call> TakeCall(const pb::Call& in, RowBuffer payload, absl::Time now,
                              const DecodeLimits& limits, RowBufferPool& pool) {
  Call call = EmptyCall(pool);
  call.call_id = in.call_id();
  call.attempt = in.attempt();
  call.part = in.part();
  call.last = in.last();
  call.layer = in.layer();
  call.model_version = in.model_version();
  call.epoch = in.epoch();
  call.priority = in.priority();
  call.rows = in.rows();
  call.hidden = in.hidden();
  call.trace_id = in.trace_id().substr(0, 64);
  SY_ASSIGN_OR_RETURN(call.dtype, RowDType(in.row_dtype()));
  if (in.rows() == 0 || in.hidden() == 0) {
    return InvalidArgument("a call of {} rows of {} elements", in.rows(), in.hidden());
  }
  // rows, hidden < 2^32 and elements of at most 4 bytes: the product of the first two fits 64 bits.
  const uint64_t elements = uint64_t{in.rows()} * in.hidden();
  const size_t element = SizeOf(call.dtype);
  if (elements > limits.max_frame_bytes || payload.bytes() != elements * element) {
    return InvalidArgument("a call of {} rows of {} elements of {} has a payload of {} bytes",
                           in.rows(), in.hidden(), Name(call.dtype), payload.bytes());
  }
  if (in.deadline_left_us() > 0) {
    call.deadline = now + absl::Microseconds(in.deadline_left_us());
  } else if (in.deadline_left_us() < 0) {
    call.deadline = now;
  }
  call.payload = std::move(payload);
  call.bad = TakeSegments(in, limits, &call);
  if (!call.bad.empty()) {
    // As many as will be answered BAD, and nothing else of what they said.
    call.segments.assign(
        std::min<size_t>(static_cast<size_t>(in.segments_size()), limits.max_segments), Segment{});
    call.row_index.clear();
    call.weights.clear();
    call.payload = RowBuffer();
  }
  return call;
}

absl::StatusOr<Answer> TakeAnswer(const pb::Answer& in, RowBuffer payload,
                                  const DecodeLimits& limits, RowBufferPool& pool) {
  Answer answer;
  answer.status = pool.List<pb::SegmentStatus>();
  answer.call_id = in.call_id();
  answer.attempt = in.attempt();
  answer.part = in.part();
  answer.last = in.last();
  answer.queue_us = in.queue_us();
  answer.compute_us = in.compute_us();
  answer.load = in.load();
  answer.sums = in.sums();
  answer.rows = in.rows();
  answer.hidden = in.hidden();
  answer.error = in.error().substr(0, 1024);
  SY_ASSIGN_OR_RETURN(answer.dtype, RowDType(in.row_dtype()));
  if (static_cast<size_t>(in.status_size()) > limits.max_segments) {
    return InvalidArgument("an answer with {} statuses; at most {}", in.status_size(),
                           limits.max_segments);
  }
  answer.status.reserve(static_cast<size_t>(in.status_size()));
  for (int status : in.status()) {
    if (!pb::SegmentStatus_IsValid(status)) return InvalidArgument("segment status {}", status);
    answer.status.push_back(static_cast<pb::SegmentStatus>(status));
  }
  const uint64_t elements = (uint64_t{in.sums()} + in.rows()) * in.hidden();
  AnswerLayout layout;
  layout.sums = in.sums();
  layout.rows = in.rows();
  if ((uint64_t{in.sums()} + in.rows()) > std::numeric_limits<uint32_t>::max() ||
      elements > limits.max_frame_bytes ||
      payload.bytes() != layout.bytes(answer.hidden, answer.dtype)) {
    return InvalidArgument(
        "an answer of {} sums and {} rows of {} elements has a payload of {} bytes", in.sums(),
        in.rows(), in.hidden(), payload.bytes());
  }
  answer.payload = std::move(payload);
  return answer;
}

// Everything without rows. A frame of a later revision's kind stays without a body.
void TakeControl(pb::Frame& in, Frame* out) {
  switch (in.kind_case()) {
    case pb::Frame::kHello:
      out->body = std::move(*in.mutable_hello());
      break;
    case pb::Frame::kCancel:
      out->body = in.cancel();
      break;
    case pb::Frame::kCredit:
      out->body = in.credit();
      break;
    case pb::Frame::kProgress:
      out->body = std::move(*in.mutable_progress());
      break;
    case pb::Frame::kDrain:
      out->body = in.drain();
      break;
    case pb::Frame::kMapAck:
      out->body = in.map_ack();
      break;
    case pb::Frame::kSharedMemory:
      out->body = in.shared_memory();
      break;
    case pb::Frame::kAssign:
      out->body = std::move(*in.mutable_assign());
      break;
    case pb::Frame::kHolds:
      out->body = std::move(*in.mutable_holds());
      break;
    case pb::Frame::kPrefetch:
      out->body = std::move(*in.mutable_prefetch());
      break;
    case pb::Frame::kCall:
    case pb::Frame::kAnswer:
    case pb::Frame::KIND_NOT_SET:
      break;
  }
}

}  // namespace

RowBuffer PayloadOf(const Frame& frame) {
  if (const Call* call = std::get_if<Call>(&frame.body)) return call->payload;
  if (const Answer* answer = std::get_if<Answer>(&frame.body)) return answer->payload;
  return RowBuffer();
}

RowBuffer EncodePrefix(const Frame& frame, absl::Time now, RowBufferPool& pool) {
  Header header(pool, MessageBytes(frame));
  std::visit(Filler{now, header.get()}, frame.body);
  header->set_credit_bytes(frame.credit_bytes);
  header->set_credit_frames(frame.credit_frames);
  const size_t header_bytes = header->ByteSizeLong();
  const size_t all = kPrefixBytes + header_bytes;
  RowBuffer out = pool.Take(PayloadOf(frame).bytes() > 0 ? AlignUp(all) : all);
  std::byte* at = out.mutable_data();
  StoreU32(static_cast<uint32_t>(header_bytes), at);
  StoreU32(kMagic, at + 4);
  header->SerializeWithCachedSizesToArray(reinterpret_cast<uint8_t*>(at) + kPrefixBytes);
  std::memset(at + all, 0, out.bytes() - all);
  return out;
}

size_t EncodedBytes(const Frame& frame, const RowBuffer& prefix) {
  return prefix.bytes() + PayloadOf(frame).bytes();
}

absl::StatusOr<Frame> DecodeFrame(const RowBuffer& bytes, absl::Time now,
                                  const DecodeLimits& limits, RowBufferPool& pool) {
  if (bytes.bytes() < kPrefixBytes || bytes.bytes() > limits.max_frame_bytes) {
    return InvalidArgument("a frame of {} bytes; {} to {} are allowed", bytes.bytes(), kPrefixBytes,
                           limits.max_frame_bytes);
  }
  const size_t header_bytes = LoadU32(bytes.data());
  if (LoadU32(bytes.data() + 4) != kMagic) return InvalidArgument("a frame without the magic SYW1");
  if (header_bytes > limits.max_header_bytes || header_bytes > bytes.bytes() - kPrefixBytes) {
    return InvalidArgument("a header of {} bytes in a frame of {}", header_bytes, bytes.bytes());
  }
  Header header(pool, 16 * header_bytes);
  if (!header->ParseFromArray(bytes.data() + kPrefixBytes, static_cast<int>(header_bytes))) {
    return InvalidArgument("a header of {} bytes that is no Frame", header_bytes);
  }
  RowBuffer payload;
  if (const size_t at = kPrefixBytes + header_bytes; at < bytes.bytes()) {
    if (AlignUp(at) > bytes.bytes()) return InvalidArgument("a frame that ends inside its padding");
    payload = bytes.Slice(AlignUp(at), bytes.bytes() - AlignUp(at));
  }
  const bool may_have_rows =
      header->has_call() || header->has_answer() || header->kind_case() == pb::Frame::KIND_NOT_SET;
  if (!may_have_rows && payload.bytes() > 0) {
    return InvalidArgument("a payload of {} bytes on a frame that has none", payload.bytes());
  }
  Frame frame;
  frame.credit_bytes = header->credit_bytes();
  frame.credit_frames = header->credit_frames();
  if (header->has_call()) {
    SY_ASSIGN_OR_RETURN(Call call, TakeCall(header->call(), std::move(payload), now, limits, pool));
    call.wire_bytes = bytes.bytes();
    frame.body = std::move(call);
  } else if (header->has_answer()) {
    SY_ASSIGN_OR_RETURN(Answer answer,
                        TakeAnswer(header->answer(), std::move(payload), limits, pool));
    answer.wire_bytes = bytes.bytes();
    frame.body = std::move(answer);
  } else {
    TakeControl(*header.get(), &frame);
  }
  return frame;
}

}  // namespace switchyard::expertwire
