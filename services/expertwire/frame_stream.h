// One established stream, either end of it: a read always outstanding, at most one write, credits
// both ways. Calls and answers wait in order for the peer's credits; everything else goes ahead of
// them. What may wait is bounded by whoever queues it.
//
// All of it under the mutex of the completion loop that the stream's queue belongs to.
#pragma once

#include <grpcpp/support/async_stream.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <deque>

#include "absl/status/status.h"
#include "services/expertwire/codec.h"
#include "services/expertwire/completion_loop.h"
#include "services/expertwire/frame.h"
#include "services/expertwire/handshake.h"

namespace switchyard::expertwire {

class FrameStream {
 public:
  class Owner {
   public:
    virtual void OnFrame(Frame frame) = 0;
    // Once: the peer ended the stream, it broke, or the peer broke its rules (`why`). Nothing is
    // sent or received any more; completions may still be outstanding.
    virtual void OnEnd(absl::Status why) = 0;
    // A completion came back after OnEnd; the owner may go once none is outstanding.
    virtual void OnQuiet() = 0;

   protected:
    ~Owner() = default;
  };

  // `grant` is what the hello of this side says. `pool` and `owner` outlive the stream.
  FrameStream(Owner& owner, RowBufferPool& pool, const CreditGrant& grant,
              const DecodeLimits& limits);

  // Starts reading. The reader and writer live until nothing is outstanding.
  void Open(grpc::internal::AsyncReaderInterface<grpc::ByteBuffer>* reader,
            grpc::internal::AsyncWriterInterface<grpc::ByteBuffer>* writer);
  // As OnEnd, by this side; the owner is not told.
  void End();

  void Send(Frame control);    // free: hello, cancel, credit, progress, drain, map ack
  void SendPaid(Frame frame);  // call or answer
  // What the peer's hello grants.
  void SetPeerGrant(uint64_t bytes, uint32_t frames);
  // Gives credits back; they travel with the next frame, or alone when the peer may need them.
  void Owe(uint64_t bytes, uint32_t frames);
  // Drops the paid frames that wait and satisfy `of`; returns how many.
  template <typename Predicate>
  size_t Drop(Predicate of) {
    return std::erase_if(paid_, [&](const Frame& frame) {
      if (!of(frame)) return false;
      waiting_bytes_ -= PayloadOf(frame).bytes();
      return true;
    });
  }

  bool ended() const { return ended_; }
  bool writing() const { return writing_; }
  bool outstanding() const { return reading_ || writing_; }
  bool nothing_to_write() const { return !writing_ && control_.empty() && paid_.empty(); }
  // Payload bytes of the paid frames that wait to be written.
  size_t waiting_bytes() const { return waiting_bytes_; }
  size_t waiting_frames() const { return paid_.size(); }
  bool control_waits() const { return !control_.empty(); }
  uint64_t peer_grant_bytes() const { return peer_grant_bytes_; }
  uint64_t bytes_written() const { return bytes_written_; }
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  struct ReadDone final : Completion {
    explicit ReadDone(FrameStream& s) : stream(s) {}
    void OnCompletion(bool ok) override { stream.OnRead(ok); }
    FrameStream& stream;
  };
  struct WriteDone final : Completion {
    explicit WriteDone(FrameStream& s) : stream(s) {}
    void OnCompletion(bool ok) override { stream.OnWritten(ok); }
    FrameStream& stream;
  };

  void OnRead(bool ok);
  void OnWritten(bool ok);
  absl::Status Receive(Frame frame);
  void Break(absl::Status why);
  // Starts the next write that may go.
  void Pump();
  void Write(Frame frame);
  bool PeerMayNeedCredit() const;

  Owner& owner_;
  RowBufferPool& pool_;
  const CreditGrant grant_;
  const DecodeLimits limits_;
  grpc::internal::AsyncReaderInterface<grpc::ByteBuffer>* reader_ = nullptr;
  grpc::internal::AsyncWriterInterface<grpc::ByteBuffer>* writer_ = nullptr;
  ReadDone read_done_{*this};
  WriteDone write_done_{*this};
  grpc::ByteBuffer incoming_;
  bool reading_ = false, writing_ = false, ended_ = false;

  std::deque<Frame> control_, paid_;
  size_t waiting_bytes_ = 0;
  // What the peer may still send, and what it has not been told of yet.
  uint64_t theirs_bytes_, owed_bytes_ = 0;
  uint64_t theirs_frames_, owed_frames_ = 0;
  // What we may still send.
  uint64_t ours_bytes_ = 0, ours_frames_ = 0;
  uint64_t peer_grant_bytes_ = 0, peer_grant_frames_ = 0;
  uint64_t bytes_written_ = 0, bytes_read_ = 0;
};

}  // namespace switchyard::expertwire
