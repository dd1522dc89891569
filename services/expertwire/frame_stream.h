// One established stream, either end of it: a read always outstanding, at most one write, credits
// both ways. Calls and answers wait in order for the peer's credits; everything else goes ahead of
// them. What may wait is bounded by whoever queues it. Frames may move to shared memory, one
// direction after the other; then gRPC's stream only wakes who sleeps.
//
// All of it under the mutex of the completion loop that the stream's queue belongs to.
#pragma once

#include <grpcpp/support/async_stream.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "services/base/fifo.h"
#include "services/expertwire/codec.h"
#include "services/expertwire/completion_loop.h"
#include "services/expertwire/frame.h"
#include "services/expertwire/handshake.h"
#include "services/expertwire/shared_pipe.h"

namespace switchyard::expertwire {

class FrameStream final : public Pollable {
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

  // `grant` is what the hello of this side says. `loop`, `pool` and `owner` outlive the stream.
  FrameStream(Owner& owner, CompletionLoop& loop, RowBufferPool& pool, const CreditGrant& grant,
              const DecodeLimits& limits);
  ~FrameStream();

  // Starts reading. The reader and writer live until nothing is outstanding.
  void Open(grpc::internal::AsyncReaderInterface<grpc::ByteBuffer>* reader,
            grpc::internal::AsyncWriterInterface<grpc::ByteBuffer>* writer);
  // Frames are read from `pipe` too from now on.
  void ReadFrom(std::unique_ptr<SharedPipe> pipe);
  // And what is not on its way yet is written to it. `last`, if any, goes over gRPC.
  void WriteToPipe(std::optional<Frame> last);
  // Lets go of a pipe that was not written to.
  void Unshare();
  // From now on: everything that the peer sent over gRPC's stream has come.
  void ReadPipe();
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
    return paid_.erase_if([&](const Frame& frame) {
      if (!of(frame)) return false;
      waiting_bytes_ -= PayloadOf(frame).bytes();
      return true;
    });
  }

  // Pollable, for the loop.
  bool Poll() override;
  bool Arm(bool by_bell) override;
  Bell bell() const override { return pipe_->bell(); }

  bool ended() const { return ended_; }
  bool shares_memory() const override { return shares_memory_; }
  bool writing() const { return writing_; }
  bool outstanding() const { return reading_ || writing_; }
  bool nothing_to_write() const {
    return !writing_ && control_.empty() && paid_.empty() && !leaving_;
  }
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
  // A frame as it goes out.
  struct Outgoing {
    RowBuffer prefix, payload;
    uint64_t bytes() const { return prefix.bytes() + payload.bytes(); }
  };

  // Starts the next write that may go; with shared memory, all for which there is room.
  void Pump();
  void PumpShared();
  // The next frame that may go, paid for.
  std::optional<Outgoing> Next();
  Outgoing Free(Frame frame);
  void Write(const Outgoing& out);
  void Ring();
  void LeaveLoop();
  // Reads on in a frame; whether it is whole now.
  absl::StatusOr<bool> ReadShared();
  absl::StatusOr<bool> WriteShared();
  // Writes on from `from`, which begins `before` bytes into the frame and its length.
  absl::StatusOr<bool> WritePiece(const void* from, size_t bytes, size_t before);
  absl::Status Take(const RowBuffer& bytes);
  bool PeerMayNeedCredit() const;

  Owner& owner_;
  CompletionLoop& loop_;
  RowBufferPool& pool_;
  const CreditGrant grant_;
  const DecodeLimits limits_;
  grpc::internal::AsyncReaderInterface<grpc::ByteBuffer>* reader_ = nullptr;
  grpc::internal::AsyncWriterInterface<grpc::ByteBuffer>* writer_ = nullptr;
  ReadDone read_done_{*this};
  WriteDone write_done_{*this};
  grpc::ByteBuffer incoming_;
  std::vector<grpc::Slice> slices_;  // of a message that is read, for its memory
  bool reading_ = false, writing_ = false, ended_ = false;

  std::unique_ptr<SharedPipe> pipe_;
  bool reads_pipe_ = false;
  bool in_loop_ = false;                // looks at the pipe
  bool shares_memory_ = false;          // writes to it
  bool must_ring_ = false;              // once the write that is on its way is through
  std::optional<Outgoing> must_write_;  // the last frame that goes over gRPC
  // The frame on its way into the pipe, and how far it is; then the one on its way out. The length
  // comes first.
  std::optional<Outgoing> leaving_;
  size_t left_ = 0;
  uint64_t coming_bytes_ = 0;
  RowBuffer coming_;
  size_t came_ = 0;

  Fifo<Frame> control_, paid_;
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
