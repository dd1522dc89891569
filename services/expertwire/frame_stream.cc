#include "services/expertwire/frame_stream.h"

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "services/base/clock.h"
#include "services/base/status.h"

namespace switchyard::expertwire {
namespace {

// Header and rows without a copy of the rows: the slice keeps the buffer.
grpc::ByteBuffer ToByteBuffer(const RowBuffer& prefix, const RowBuffer& payload) {
  grpc::Slice slices[2] = {grpc::Slice(prefix.data(), prefix.bytes()), grpc::Slice()};
  if (payload.bytes() == 0) return grpc::ByteBuffer(slices, 1);
  auto* keep = new RowBuffer(payload);
  slices[1] = grpc::Slice(
      const_cast<std::byte*>(payload.data()), payload.bytes(),
      [](void* buffer) { delete static_cast<RowBuffer*>(buffer); }, keep);
  return grpc::ByteBuffer(slices, 2);
}

// One copy, which also aligns the payload.
absl::StatusOr<RowBuffer> ToRowBuffer(const grpc::ByteBuffer& in, RowBufferPool& pool,
                                      std::vector<grpc::Slice>& slices) {
  if (!in.Dump(&slices).ok()) return InvalidArgument("a message that cannot be read");
  RowBuffer out = pool.Take(in.Length());
  std::byte* at = out.mutable_data();
  for (const grpc::Slice& slice : slices) {
    std::memcpy(at, slice.begin(), slice.size());
    at += slice.size();
  }
  slices.clear();
  return out;
}

// Of one stream; then the others get their turn.
constexpr int kFramesAPoll = 64;

bool IsPaid(const Frame& frame) {
  return std::holds_alternative<Call>(frame.body) || std::holds_alternative<Answer>(frame.body);
}

}  // namespace

FrameStream::FrameStream(Owner& owner, CompletionLoop& loop, RowBufferPool& pool,
                         const CreditGrant& grant, const DecodeLimits& limits)
    : owner_(owner),
      loop_(loop),
      pool_(pool),
      grant_(grant),
      limits_(limits),
      theirs_bytes_(grant.bytes),
      theirs_frames_(grant.frames) {}

void FrameStream::Open(grpc::internal::AsyncReaderInterface<grpc::ByteBuffer>* reader,
                       grpc::internal::AsyncWriterInterface<grpc::ByteBuffer>* writer) {
  reader_ = reader;
  writer_ = writer;
  loop_.mutex().AssertHeld();
  loop_.Add(this);
  in_loop_ = true;
  reading_ = true;
  reader_->Read(&incoming_, &read_done_);
}

FrameStream::~FrameStream() { LeaveLoop(); }

void FrameStream::LeaveLoop() {
  if (!std::exchange(in_loop_, false)) return;
  loop_.mutex().AssertHeld();
  loop_.Remove(this);
}

void FrameStream::End() {
  ended_ = true;
  LeaveLoop();
  leaving_.reset();
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
  absl::StatusOr<RowBuffer> bytes = ToRowBuffer(incoming_, pool_, slices_);
  incoming_.Clear();
  reading_ = true;
  reader_->Read(&incoming_, &read_done_);
  if (!bytes.ok()) return Break(bytes.status());
  if (absl::Status status = Take(*bytes); !status.ok()) Break(std::move(status));
}

absl::Status FrameStream::Take(const RowBuffer& bytes) {
  SY_ASSIGN_OR_RETURN(Frame frame, DecodeFrame(bytes, SteadyNow(), limits_, pool_));
  return Receive(std::move(frame));
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
  if (std::exchange(must_ring_, false)) Ring();
  Pump();
}

bool FrameStream::PeerMayNeedCredit() const {
  return (owed_bytes_ > 0 && 2 * theirs_bytes_ < grant_.bytes) ||
         (owed_frames_ > 0 && 2 * theirs_frames_ < grant_.frames);
}

void FrameStream::Pump() {
  if (ended_ || writer_ == nullptr) return;
  if (shares_memory_) return PumpShared();
  if (writing_) return;
  if (const std::optional<Outgoing> out = Next()) Write(*out);
}

std::optional<FrameStream::Outgoing> FrameStream::Next() {
  if (!control_.empty()) {
    return Free(control_.pop_front());
  }
  if (!paid_.empty() && ours_frames_ > 0) {
    Frame& frame = paid_.front();
    // The call's space here is free once its answer leaves; the news travels with it.
    const Answer* answer = std::get_if<Answer>(&frame.body);
    frame.credit_bytes = owed_bytes_ + (answer ? answer->call_wire_bytes : 0);
    frame.credit_frames = static_cast<uint32_t>(owed_frames_ + (answer ? 1 : 0));
    Outgoing out{EncodePrefix(frame, SteadyNow(), pool_), PayloadOf(frame)};
    if (const size_t cost = EncodedBytes(frame, out.prefix); cost <= ours_bytes_) {
      ours_bytes_ -= cost;
      --ours_frames_;
      theirs_bytes_ += frame.credit_bytes;
      theirs_frames_ += frame.credit_frames;
      owed_bytes_ = owed_frames_ = 0;
      waiting_bytes_ -= out.payload.bytes();
      paid_.pop_front();
      return out;
    }
  }
  if (PeerMayNeedCredit()) return Free(Frame{.body = pb::Credit()});
  return std::nullopt;
}

FrameStream::Outgoing FrameStream::Free(Frame frame) {
  frame.credit_bytes = std::exchange(owed_bytes_, 0);
  frame.credit_frames = static_cast<uint32_t>(std::exchange(owed_frames_, 0));
  theirs_bytes_ += frame.credit_bytes;
  theirs_frames_ += frame.credit_frames;
  return {EncodePrefix(frame, SteadyNow(), pool_), RowBuffer()};
}

void FrameStream::Write(const Outgoing& out) {
  writing_ = true;
  bytes_written_ += out.bytes();
  writer_->Write(ToByteBuffer(out.prefix, out.payload), &write_done_);
}

// ---- shared memory ----

void FrameStream::ReadFrom(std::unique_ptr<SharedPipe> pipe) {
  if (ended_ || shares_memory_) return;
  pipe_ = std::move(pipe);
}

void FrameStream::WriteToPipe(std::optional<Frame> last) {
  if (ended_ || shares_memory_ || pipe_ == nullptr) return;
  shares_memory_ = true;
  if (last) {
    must_write_ = Free(*std::move(last));
    Ring();
  }
  PumpShared();
}

void FrameStream::ReadPipe() { reads_pipe_ = pipe_ != nullptr; }

void FrameStream::Unshare() {
  if (shares_memory_) return;
  reads_pipe_ = false;
  pipe_.reset();
}

// An empty frame on gRPC's stream completes a read of the peer's.
void FrameStream::Ring() {
  if (writing_) {
    must_ring_ = true;
    return;
  }
  if (must_write_) return Write(*std::exchange(must_write_, std::nullopt));
  Write({EncodePrefix(Frame{.body = pb::Credit()}, SteadyNow(), pool_), RowBuffer()});
}

bool FrameStream::Arm(bool by_bell) {
  // As long as it is not read, the frame that changes that wakes this side.
  if (pipe_ == nullptr || (!reads_pipe_ && !leaving_)) return true;
  return pipe_->Arm(leaving_.has_value(), by_bell);
}

bool FrameStream::Poll() {
  bool any = false;
  for (int i = 0; i < kFramesAPoll && in_loop_ && reads_pipe_; ++i) {
    absl::StatusOr<bool> whole = ReadShared();
    if (whole.ok() && !*whole) break;
    any = true;
    absl::Status status = whole.status();
    if (status.ok()) status = Take(std::exchange(coming_, RowBuffer()));
    if (!status.ok()) Break(std::move(status));
  }
  if (in_loop_ && shares_memory_) PumpShared();
  return any;
}

absl::StatusOr<bool> FrameStream::ReadShared() {
  if (came_ < sizeof(coming_bytes_)) {
    SY_ASSIGN_OR_RETURN(const size_t n,
                        pipe_->Read(reinterpret_cast<std::byte*>(&coming_bytes_) + came_,
                                    sizeof(coming_bytes_) - came_));
    came_ += n;
    if (came_ < sizeof(coming_bytes_)) return false;
    if (coming_bytes_ > limits_.max_frame_bytes) {
      return InvalidArgument("a frame of {} bytes; at most {}", coming_bytes_,
                             limits_.max_frame_bytes);
    }
    coming_ = pool_.Take(coming_bytes_);
  }
  const size_t at = came_ - sizeof(coming_bytes_);
  SY_ASSIGN_OR_RETURN(const size_t n,
                      pipe_->Read(coming_.mutable_data() + at, coming_.bytes() - at));
  came_ += n;
  if (at + n < coming_.bytes()) return false;
  bytes_read_ += coming_.bytes();
  came_ = 0;
  return true;
}

void FrameStream::PumpShared() {
  while (true) {
    if (!leaving_) {
      leaving_ = Next();
      if (!leaving_) break;
      bytes_written_ += leaving_->bytes();
      left_ = 0;
    }
    const absl::StatusOr<bool> whole = WriteShared();
    if (!whole.ok()) return Break(whole.status());
    if (!*whole) break;
    leaving_.reset();
  }
  if (pipe_->MustTell()) Ring();
}

absl::StatusOr<bool> FrameStream::WriteShared() {
  const uint64_t length = leaving_->bytes();
  const size_t head = sizeof(length), prefix = leaving_->prefix.bytes();
  SY_ASSIGN_OR_RETURN(bool whole, WritePiece(&length, head, 0));
  if (!whole) return false;
  SY_ASSIGN_OR_RETURN(whole, WritePiece(leaving_->prefix.data(), prefix, head));
  if (!whole) return false;
  return WritePiece(leaving_->payload.data(), leaving_->payload.bytes(), head + prefix);
}

absl::StatusOr<bool> FrameStream::WritePiece(const void* from, size_t bytes, size_t before) {
  const size_t done = left_ - before;
  if (done >= bytes) return true;
  SY_ASSIGN_OR_RETURN(const size_t n,
                      pipe_->Write(static_cast<const std::byte*>(from) + done, bytes - done));
  left_ += n;
  return done + n == bytes;
}

}  // namespace switchyard::expertwire
