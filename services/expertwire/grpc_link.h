// The router's end of the gRPC wire: one stream to one worker (one lane), made again after it ends.
// Where nothing else is said, under the mutex of the loop, which Send, Cancel and Poll take.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "services/base/fifo.h"
#include "services/expertwire/completion_loop.h"
#include "services/expertwire/expert_link.h"
#include "services/expertwire/frame_stream.h"
#include "services/expertwire/link_set.h"

namespace switchyard::expertwire {

class GrpcLink final : public ExpertLink {
 public:
  // `loop` outlives the link, whose Stop has been called and whose stopped() is true by then.
  GrpcLink(const GrpcLinkOptions& options, const pb::Hello& hello, CompletionLoop& loop,
           RowBufferPool& pool);
  ~GrpcLink() override;

  const std::string& name() const override { return name_; }
  LinkState state() const override { return state_.load(std::memory_order_acquire); }
  absl::Status why() const override;
  std::shared_ptr<const pb::Hello> peer() const override;
  uint64_t generation() const override { return generation_.load(std::memory_order_acquire); }
  LinkStats stats() const override;
  bool suspect() const override { return suspect_.load(std::memory_order_relaxed); }

  size_t max_part_bytes() const override { return max_part_bytes_; }
  bool borrows_rows() const override { return false; }
  absl::Status Send(Call part) override;
  void Cancel(uint64_t call_id, uint32_t attempt) override;
  void Assign(pb::Assign assign) override { Tell({.body = std::move(assign)}); }
  void AckEpoch(uint64_t epoch) override;
  void Prefetch(pb::Prefetch prefetch) override { Tell({.body = std::move(prefetch)}); }
  bool Computing(uint64_t call_id, uint32_t attempt) override;
  bool Poll(std::vector<LinkEvent>* events) override;

  // ---- with the mutex held ----
  // Time passes: connects, gives up, suspects.
  void Tick(absl::Time now);
  // Whether Poll has something, or the worker said since the last one what it holds.
  bool has_events() const { return told_ || !inbox_.empty(); }
  bool idle() const { return open_.empty(); }  // no call waits for an answer
  // Ends the stream that stands, to connect again.
  void LetGo();
  void Stop();
  bool stopped() const { return stopping_ && lane_ == nullptr; }

 private:
  class Lane;
  // A change of state moves the generation further than any number of changed hellos: of two lanes
  // the sum then still tells calls before the end of a stream from those after it.
  static constexpr uint64_t kStateStep = uint64_t{1} << 32;

  struct OpenPart {
    uint32_t part = 0;
    size_t reserved = 0;  // for its answer; 0 while it waits here
  };
  struct OpenCall {
    bool computing = false;  // as the last progress said
    absl::InlinedVector<OpenPart, 4> parts;
  };
  using CallKey = std::pair<uint64_t, uint32_t>;  // call_id, attempt

  void Connect(absl::Time now);
  void GiveUpConnecting();
  void OnHello(const pb::Hello& hello);
  void OnHolds(pb::Holds holds);
  // Sends what peers of revision 1 know, or drops it.
  void Tell(Frame frame);
  void OnAnswer(Answer answer);
  void OnProgress(const pb::Progress& progress);
  void OnLaneEnd(absl::Status why);
  void OnLaneGone();
  // Hands what waits to the lane, as far as the answers have room here.
  void Forward();
  void Release(const OpenPart& part);
  void SetState(LinkState state, absl::Status why, std::shared_ptr<const pb::Hello> peer);

  const GrpcLinkOptions options_;
  const pb::Hello hello_;
  const std::string name_;
  const CreditGrant grant_;
  CompletionLoop& loop_;
  RowBufferPool& pool_;
  std::shared_ptr<grpc::Channel> channel_;
  grpc::GenericStub stub_;

  std::unique_ptr<Lane> lane_;
  absl::Time next_attempt_ = absl::InfinitePast();
  absl::Duration backoff_;
  bool stopping_ = false, refused_ = false;
  bool waits_ = false;  // the next lane, for its channel
  absl::Time heard_;    // last frame, or when calls became open
  absl::flat_hash_map<CallKey, OpenCall> open_;
  Fifo<Call> waiting_;
  size_t reserved_bytes_ = 0, reserved_parts_ = 0;
  uint64_t past_written_ = 0, past_read_ = 0;  // by lanes that are gone
  std::vector<LinkEvent> inbox_;
  bool told_ = false;  // generation_ has changed by what the worker holds
  size_t max_part_bytes_ = size_t{1} << 20;

  std::atomic<LinkState> state_ = LinkState::kConnecting;
  std::atomic<uint64_t> generation_ = kStateStep;
  mutable absl::Mutex info_mutex_;  // taken last
  absl::Status why_ ABSL_GUARDED_BY(info_mutex_);
  std::shared_ptr<const pb::Hello> peer_ ABSL_GUARDED_BY(info_mutex_);
  std::atomic<bool> shares_memory_ = false, suspect_ = false;
  std::atomic<uint64_t> frames_sent_ = 0, frames_received_ = 0, bytes_sent_ = 0,
                        bytes_received_ = 0, connects_ = 0, suspicions_ = 0, stale_ = 0;
};

}  // namespace switchyard::expertwire
