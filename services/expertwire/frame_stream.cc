#include "services/expertwire/frame_stream.h"

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "services/base/status.h"

namespace switchyard::expertwire {
namespace {

// Header and rows without a copy of the rows: the slice keeps the buffer.
grpc::ByteBuffer ToByteBuffer(const std::string& prefix, const RowBuffer& payload) {
  grpc::Slice slices[2] = {grpc::Slice(prefix), grpc::Slice()};
  if (payload.bytes() == 0) return grpc::ByteBuffer(slices, 1);
  auto* keep = new RowBuffer(payload);
  slices[1] = grpc::Slice(
      const_cast<std::byte*>(payload.data()), payload.bytes(),
      [](void* buffer) { delete static_cast<RowBuffer*>(buffer); }, keep);
  return grpc::ByteBuffer(slices, 2);
}

// One copy, which also aligns the payload.
absl::StatusOr<RowBuffer> ToRowBuffer(const grpc::ByteBuffer& in, RowBufferPool& pool) {
  std::vector<grpc::Slice> slices;
  if (!in.Dump(&slices).ok()) return InvalidArgument("a message that cannot be read");
  RowBuffer out = pool.Take(in.Length());
  std::byte* at = out.mutable_data();
  for (const grpc::Slice& slice : slices) {
    std::memcpy(at, slice.begin(), slice.size());
    at += slice.size();
  }
  return out;
}

bool IsPaid(const Frame& frame) {
  return std::holds_alternative<Call>(frame.body) || std::holds_alternative<Answer>(frame.body);
}

}  // namespace

FrameStream::FrameStream(Owner& owner, RowBufferPool& pool, const CreditGrant& grant,
                         const DecodeLimits& limits)
    : owner_(owner),
      pool_(pool),
      grant_(grant),
      limits_(limits),
      theirs_bytes_(grant.bytes),
      theirs_frames_(grant.frames) {}

void FrameStream::Open(grpc::internal::AsyncReaderInterface<grpc::ByteBuffer>* reader,
                       grpc::internal::AsyncWriterInterface<grpc::ByteBuffer>* writer) {
  reader_ = reader;
  writer_ = writer;
  reading_ = true;
  reader_->Read(&incoming_, &read_done_);
}

void FrameStream::End() {
  ended_ = true;
  control_.clear();
  paid_.clear();
  waiting_bytes_ = 0;
}

void FrameStream::Break(absl::Status why) {
  if (ended_) return;
  End();
  owner_.OnEnd(std::move(why));
}

void FrameStream::Send(Frame control) {
  if (ended_) return;
  control_.push_back(std::move(control));
  Pump();
}

void FrameStream::SendPaid(Frame frame) {
  if (ended_) return;
  waiting_bytes_ += PayloadOf(frame).bytes();
  paid_.push_back(std::move(frame));
  Pump();
}

void FrameStream::SetPeerGrant(uint64_t bytes, uint32_t frames) {
  peer_grant_bytes_ = ours_bytes_ = bytes;
  peer_grant_frames_ = ours_frames_ = frames;
  Pump();
}

void FrameStream::Owe(uint64_t bytes, uint32_t frames) {
  if (ended_) return;
  owed_bytes_ += bytes;
  owed_frames_ += frames;
  Pump();
}

void FrameStream::OnRead(bool ok) {
  reading_ = false;
  if (ended_) return owner_.OnQuiet();
  if (!ok) return Break(Unavailable("the stream ended"));
  bytes_read_ += incoming_.Length();
  if (incoming_.Length() > limits_.max_frame_bytes) {
    return Break(InvalidArgument("a frame of {} bytes; at most {}", incoming_.Length(),
                                 limits_.max_frame_bytes));
  }
  absl::StatusOr<RowBuffer> bytes = ToRowBuffer(incoming_, pool_);
  incoming_.Clear();
  reading_ = true;
  reader_->Read(&incoming_, &read_done_);
  if (!bytes.ok()) return Break(bytes.status());
  absl::StatusOr<Frame> frame = DecodeFrame(*bytes, absl::Now(), limits_);
  if (!frame.ok()) return Break(frame.status());
  if (absl::Status status = Receive(*std::move(frame)); !status.ok()) Break(std::move(status));
}

absl::Status FrameStream::Receive(Frame frame) {
  if (frame.credit_bytes > peer_grant_bytes_ - ours_bytes_ ||
      frame.credit_frames > peer_grant_frames_ - ours_frames_) {
    return InvalidArgument("{} bytes and {} frames of credit are given back, more than were spent",
                           frame.credit_bytes, frame.credit_frames);
  }
  ours_bytes_ += frame.credit_bytes;
  ours_frames_ += frame.credit_frames;
  if (IsPaid(frame)) {
    const Call* call = std::get_if<Call>(&frame.body);
    const size_t cost = call ? call->wire_bytes : std::get<Answer>(frame.body).wire_bytes;
    if (cost > theirs_bytes_ || theirs_frames_ == 0) {
      return ResourceExhausted("a frame of {} bytes; {} bytes and {} frames of credit are left",
                               cost, theirs_bytes_, theirs_frames_);
    }
    theirs_bytes_ -= cost;
    --theirs_frames_;
  }
  owner_.OnFrame(std::move(frame));
  if (!ended_) Pump();
  return absl::OkStatus();
}

void FrameStream::OnWritten(bool ok) {
  writing_ = false;
  if (ended_) return owner_.OnQuiet();
  if (!ok) return Break(Unavailable("the stream broke"));
  Pump();
}

bool FrameStream::PeerMayNeedCredit() const {
  return (owed_bytes_ > 0 && 2 * theirs_bytes_ < grant_.bytes) ||
         (owed_frames_ > 0 && 2 * theirs_frames_ < grant_.frames);
}

void FrameStream::Pump() {
  if (writing_ || ended_ || writer_ == nullptr) return;
  if (!control_.empty()) {
    Frame frame = std::move(control_.front());
    control_.pop_front();
    return Write(std::move(frame));
  }
  if (!paid_.empty() && ours_frames_ > 0) {
    Frame& frame = paid_.front();
    // The call's space here is free once its answer leaves; the news travels with it.
    const Answer* answer = std::get_if<Answer>(&frame.body);
    frame.credit_bytes = owed_bytes_ + (answer ? answer->call_wire_bytes : 0);
    frame.credit_frames = static_cast<uint32_t>(owed_frames_ + (answer ? 1 : 0));
    const std::string prefix = EncodePrefix(frame, absl::Now());
    if (const size_t cost = EncodedBytes(frame, prefix); cost <= ours_bytes_) {
      ours_bytes_ -= cost;
      --ours_frames_;
      theirs_bytes_ += frame.credit_bytes;
      theirs_frames_ += frame.credit_frames;
      owed_bytes_ = owed_frames_ = 0;
      writing_ = true;
      bytes_written_ += cost;
      const grpc::ByteBuffer buffer = ToByteBuffer(prefix, PayloadOf(frame));
      waiting_bytes_ -= PayloadOf(frame).bytes();
      paid_.pop_front();
      writer_->Write(buffer, &write_done_);
      return;
    }
  }
  if (PeerMayNeedCredit()) Write(Frame{.body = pb::Credit()});
}

void FrameStream::Write(Frame frame) {
  frame.credit_bytes = std::exchange(owed_bytes_, 0);
  frame.credit_frames = static_cast<uint32_t>(std::exchange(owed_frames_, 0));
  theirs_bytes_ += frame.credit_bytes;
  theirs_frames_ += frame.credit_frames;
  const std::string prefix = EncodePrefix(frame, absl::Now());
  bytes_written_ += prefix.size();
  writing_ = true;
  writer_->Write(ToByteBuffer(prefix, RowBuffer()), &write_done_);
}

}  // namespace switchyard::expertwire
