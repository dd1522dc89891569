#include "services/expertwire/grpc_link.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <optional>
#include <span>

#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/random_bits.h"
#include "services/base/status.h"
#include "services/expertwire/layout.h"
#include "services/expertwire/memory_mailbox.h"
#include "services/rpc/channel.h"

namespace switchyard::expertwire {
namespace {

// How long a dead call may take to say why it ended.
constexpr absl::Duration kEndPatience = absl::Seconds(1);

// What is reserved for the answer of a part.
size_t AnswerRoom(const Call& part) {
  return part.answer_bytes + kHeaderRoom + 2 * part.segments.size();
}

pb::Hello WithHost(pb::Hello hello, bool shared_memory) {
  if (shared_memory) hello.set_host(HostId());
  return hello;
}

std::shared_ptr<grpc::Channel> MakeChannel(const GrpcLinkOptions& options) {
  grpc::ChannelArguments arguments = rpc::DefaultChannelArguments();
  // Otherwise channels to one address share a connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(static_cast<int>(options.max_frame_bytes));
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS,
                   static_cast<int>(absl::ToInt64Milliseconds(options.connect_timeout)));
  if (options.socket_buffer_bytes > 0) {
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, options.socket_buffer_bytes);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  }
  if (!options.tls_name.empty()) arguments.SetSslTargetNameOverride(options.tls_name);
  const auto credentials =
      options.credentials ? options.credentials : grpc::InsecureChannelCredentials();
  return grpc::CreateCustomChannel(options.target, credentials, arguments);
}

}  // namespace

// One stream, from its start to its last completion.
class GrpcLink::Lane final : public FrameStream::Owner {
 public:
  // `waits` for the channel, or fails with it.
  Lane(GrpcLink& link, absl::Time now, bool waits)
      : link_(link),
        deadline_(now + link.options_.connect_timeout),
        stream_(*this, link.loop_, link.pool_, link.grant_,
                DecodeLimits{.max_frame_bytes = link.options_.max_frame_bytes,
                             .max_answer_bytes = link.options_.max_frame_bytes}) {
    context_.set_wait_for_ready(waits);
    rpc_ = link.stub_.PrepareCall(&context_, kDispatchMethod, link.loop_.queue());
    starting_ = true;
    rpc_->StartCall(&started_);
  }

  FrameStream& stream() { return stream_; }
  bool up() const { return up_; }
  absl::Time deadline() const { return deadline_; }
  // Time passes: what should have come back by itself once the call was dead is cancelled.
  void CutOff(absl::Time now) {
    if (now < cut_off_at_) return;
    cut_off_at_ = absl::InfiniteFuture();
    context_.TryCancel();
  }
  bool ending() const { return finishing_ || !why_.ok(); }
  bool gone() const { return finished_done_ && !starting_ && !stream_.outstanding(); }
  // Ends the stream from this side; the link hears of it when all is quiet.
  void Close(absl::Status why) {
    if (!why_.ok()) return;
    why_ = std::move(why);
    closed_ = true;
    stream_.End();
    context_.TryCancel();
    if (!starting_) Finish();
  }

  void OnFrame(Frame frame) override;
  void OnEnd(absl::Status why) override {
    why_ = std::move(why);
    if (!absl::IsUnavailable(why_)) context_.TryCancel();
    Finish();
  }
  void OnQuiet() override { link_.OnLaneGone(); }

 private:
  template <void (Lane::*kThen)(bool)>
  struct Then final : Completion {
    explicit Then(Lane& l) : lane(l) {}
    void OnCompletion(bool ok) override { (lane.*kThen)(ok); }
    Lane& lane;
  };

  void OnStarted(bool ok);
  void OnFinished(bool);
  // Leaves shared memory at the worker's mailbox and says so.
  void OfferMemory(const pb::Hello& hello);
  void OnMemory(const pb::SharedMemory& taken);
  void Finish() {
    if (std::exchange(finishing_, true)) return;
    // The status waits for what is in flight. A dead call brings that back by itself, and the
    // server's reason with it; a cancel would hide the reason.
    if (stream_.outstanding()) cut_off_at_ = SteadyNow() + kEndPatience;
    rpc_->Finish(&status_, &finished_);
  }

  GrpcLink& link_;
  absl::Time deadline_;  // of the channel, then of the hello
  absl::Time cut_off_at_ = absl::InfiniteFuture();
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> rpc_;
  FrameStream stream_;
  Then<&Lane::OnStarted> started_{*this};
  Then<&Lane::OnFinished> finished_{*this};
  grpc::Status status_;
  absl::Status why_;
  uint64_t nonce_ = 0;  // of the memory that was offered
  bool up_ = false, closed_ = false, starting_ = false, finishing_ = false, finished_done_ = false;
};

void GrpcLink::Lane::OnStarted(bool ok) {
  starting_ = false;
  if (!why_.ok() || !ok) return Finish();
  deadline_ = SteadyNow() + link_.options_.connect_timeout;
  stream_.Open(rpc_.get(), rpc_.get());
  stream_.Send({.body = link_.hello_});
}

void GrpcLink::Lane::OnFinished(bool) {
  finished_done_ = true;
  // gRPC's own words say more than "the stream ended".
  if (!status_.ok() && !closed_ && (why_.ok() || absl::IsUnavailable(why_))) {
    const bool lone = !up_ && status_.error_code() == grpc::StatusCode::UNAVAILABLE;
    why_ = Unavailable("{}: {}{}", link_.name(), status_.error_message(),
                       lone ? rpc::kUnreachedHint : "");
  } else if (why_.ok()) {
    why_ = Unavailable("{} ended the stream", link_.name());
  }
  link_.OnLaneEnd(why_);
  link_.OnLaneGone();
}

void GrpcLink::Lane::OnFrame(Frame frame) {
  link_.heard_ = SteadyNow();
  if (const auto* hello = std::get_if<pb::Hello>(&frame.body)) {
    if (up_) return Close(InvalidArgument("{} sent a second hello", link_.name()));
    up_ = true;
    link_.OnHello(*hello);
    if (why_.ok()) OfferMemory(*hello);
    return;
  }
  if (!up_) return Close(InvalidArgument("{} sent a frame before its hello", link_.name()));
  if (const auto* taken = std::get_if<pb::SharedMemory>(&frame.body)) return OnMemory(*taken);
  if (auto* answer = std::get_if<Answer>(&frame.body)) {
    stream_.Owe(answer->wire_bytes, 1);
    link_.OnAnswer(std::move(*answer));
  } else if (auto* holds = std::get_if<pb::Holds>(&frame.body)) {
    link_.OnHolds(std::move(*holds));
  } else if (const auto* progress = std::get_if<pb::Progress>(&frame.body)) {
    link_.OnProgress(*progress);
  } else if (std::holds_alternative<pb::Drain>(frame.body)) {
    link_.SetState(LinkState::kDraining, Unavailable("{} is draining", link_.name()), link_.peer());
  }
  // The rest means nothing to a router.
}

void GrpcLink::Lane::OfferMemory(const pb::Hello& hello) {
  if (hello.mailbox().empty() || hello.host().empty() || hello.host() != link_.hello_.host())
    return;
  absl::StatusOr<std::unique_ptr<SharedPipe>> pipe = SharedPipe::Create();
  nonce_ = RandomBits() | 1;  // 0: declined
  absl::Status left = pipe.status();
  if (left.ok()) left = LeaveMemory(hello.mailbox(), nonce_, (*pipe)->fd());
  if (!left.ok()) {
    log::Info("worker {}: no shared memory: {}", link_.name(), ToStd(left.message()));
    return;
  }
  stream_.ReadFrom(*std::move(pipe));
  pb::SharedMemory offer;
  offer.set_nonce(nonce_);
  stream_.Send({.body = std::move(offer)});
}

void GrpcLink::Lane::OnMemory(const pb::SharedMemory& taken) {
  if (nonce_ == 0 || stream_.shares_memory()) return;
  if (taken.nonce() != nonce_) return stream_.Unshare();
  stream_.ReadPipe();
  // The last one over TCP, behind which the worker reads the pipe: one of revision 1 does before.
  std::optional<Frame> last;
  if (link_.peer()->revision() >= 2) last = Frame{.body = taken};
  stream_.WriteToPipe(std::move(last));
  link_.shares_memory_.store(true, std::memory_order_relaxed);
  log::Info("worker {}: over shared memory", link_.name());
}

GrpcLink::GrpcLink(const GrpcLinkOptions& options, const pb::Hello& hello, CompletionLoop& loop,
                   RowBufferPool& pool)
    : options_(options),
      hello_(WithHost(hello, options.shared_memory)),
      name_(hello.lane() == 0 ? options.target : options.target + " (bulk)"),
      grant_{hello.credits_bytes(), hello.credits_frames()},
      loop_(loop),
      pool_(pool),
      channel_(MakeChannel(options)),
      stub_(channel_),
      backoff_(options.backoff_min),
      why_(Unavailable("{}: not connected yet", options.target)) {
  max_part_bytes_ = std::min<size_t>(max_part_bytes_, grant_.bytes / 4);
}

GrpcLink::~GrpcLink() = default;

absl::Status GrpcLink::why() const {
  absl::MutexLock lock(&info_mutex_);
  return why_;
}

std::shared_ptr<const pb::Hello> GrpcLink::peer() const {
  absl::MutexLock lock(&info_mutex_);
  return peer_;
}

LinkStats GrpcLink::stats() const {
  const auto read = [](const std::atomic<uint64_t>& a) {
    return a.load(std::memory_order_relaxed);
  };
  return {.frames_sent = read(frames_sent_),
          .frames_received = read(frames_received_),
          .bytes_sent = read(bytes_sent_),
          .bytes_received = read(bytes_received_),
          .connects = read(connects_),
          .suspicions = read(suspicions_),
          .stale_answers = read(stale_),
          .shares_memory = shares_memory_.load(std::memory_order_relaxed)};
}

void GrpcLink::SetState(LinkState state, absl::Status why, std::shared_ptr<const pb::Hello> peer) {
  const bool same_state = state == state_.load();
  if (!same_state) {
    log::Info("worker {}: {}{}{}", name(), Name(state), why.ok() ? "" : ", ", ToStd(why.message()));
  }
  {
    absl::MutexLock lock(&info_mutex_);
    if (same_state && why_ == why && peer_ == peer) return;  // tried again, to the same end
    why_ = std::move(why);
    peer_ = std::move(peer);
  }
  state_.store(state, std::memory_order_release);
  generation_.fetch_add(kStateStep, std::memory_order_release);
}

// The channel connects while a call waits for it: one that fails at once leaves an attempt behind
// that nobody polls. But only such a one tells why there is no connection; so they take turns.
void GrpcLink::Connect(absl::Time now) {
  refused_ = false;
  rpc::RetryNow(*channel_);
  lane_ = std::make_unique<Lane>(*this, now, std::exchange(waits_, !waits_));
}

void GrpcLink::OnHello(const pb::Hello& hello) {
  absl::Status fits = hello.refused().empty() ? CheckPeer(hello_, hello)
                                              : FailedPrecondition("{}", hello.refused());
  if (!fits.ok()) {
    refused_ = true;
    return lane_->Close(std::move(fits));
  }
  backoff_ = options_.backoff_min;
  waits_ = false;
  connects_.fetch_add(1, std::memory_order_relaxed);
  lane_->stream().SetPeerGrant(hello.credits_bytes(), hello.credits_frames());
  SetState(LinkState::kUp, absl::OkStatus(), std::make_shared<const pb::Hello>(hello));
}

void GrpcLink::OnHolds(pb::Holds holds) {
  auto changed = std::make_shared<const pb::Hello>(WithHolds(*peer(), std::move(holds)));
  {
    absl::MutexLock lock(&info_mutex_);
    peer_ = std::move(changed);
  }
  generation_.fetch_add(1, std::memory_order_release);
  told_ = true;
}

void GrpcLink::Tell(Frame frame) {
  absl::MutexLock lock(&loop_.mutex());
  const LinkState now = state();
  if (now != LinkState::kUp && now != LinkState::kDraining) return;
  if (!lane_ || peer()->revision() == 0) return;
  lane_->stream().Send(std::move(frame));
}

void GrpcLink::AckEpoch(uint64_t epoch) {
  pb::MapAck ack;
  ack.set_epoch(epoch);
  Tell({.body = std::move(ack)});
}

absl::Status GrpcLink::Send(Call part) {
  absl::MutexLock lock(&loop_.mutex());
  const bool up = state() == LinkState::kUp || state() == LinkState::kDraining;
  if (!up || !lane_ || lane_->stream().ended()) {
    return Unavailable("{} is not up", name());
  }
  const size_t reserve = AnswerRoom(part);
  const size_t cost =
      part.payload.bytes() + kHeaderRoom + part.row_index.size() * 9 + part.segments.size() * 32;
  if (2 * reserve > grant_.bytes || 2 * cost > lane_->stream().peer_grant_bytes()) {
    return ResourceExhausted("a part of {} bytes, answered with {}, does not fit the credits of {}",
                             cost, reserve, name());
  }
  if (open_.empty()) heard_ = SteadyNow();
  open_[{part.call_id, part.attempt}].parts.push_back({.part = part.part});
  frames_sent_.fetch_add(1, std::memory_order_relaxed);
  waiting_.push_back(std::move(part));
  Forward();
  return absl::OkStatus();
}

void GrpcLink::Forward() {
  while (!waiting_.empty() && lane_ && !lane_->stream().ended()) {
    const Call& part = waiting_.front();
    const size_t reserve = AnswerRoom(part);
    if (reserved_parts_ + 1 > grant_.frames || reserved_bytes_ + reserve > grant_.bytes) return;
    ++reserved_parts_;
    reserved_bytes_ += reserve;
    for (OpenPart& open : open_[{part.call_id, part.attempt}].parts) {
      if (open.part == part.part) open.reserved = reserve;
    }
    lane_->stream().SendPaid({.body = waiting_.pop_front()});
  }
}

void GrpcLink::Release(const OpenPart& part) {
  if (part.reserved == 0) return;
  reserved_bytes_ -= part.reserved;
  --reserved_parts_;
}

void GrpcLink::OnAnswer(Answer answer) {
  frames_received_.fetch_add(1, std::memory_order_relaxed);
  const auto call = open_.find({answer.call_id, answer.attempt});
  OpenPart* part = nullptr;
  for (OpenPart& open :
       call == open_.end() ? std::span<OpenPart>() : std::span(call->second.parts)) {
    if (open.part == answer.part) part = &open;
  }
  if (part == nullptr) {
    stale_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  Release(*part);
  call->second.parts.erase(part);
  if (call->second.parts.empty()) open_.erase(call);
  inbox_.push_back(std::move(answer));
  Forward();
}

void GrpcLink::OnProgress(const pb::Progress& progress) {
  for (const pb::Progress::Open& open : progress.open()) {
    const auto call = open_.find({open.call_id(), open.attempt()});
    if (call != open_.end()) call->second.computing = open.computing();
  }
}

bool GrpcLink::Computing(uint64_t call_id, uint32_t attempt) {
  absl::MutexLock lock(&loop_.mutex());
  const auto call = open_.find({call_id, attempt});
  return call != open_.end() && call->second.computing;
}

void GrpcLink::Cancel(uint64_t call_id, uint32_t attempt) {
  absl::MutexLock lock(&loop_.mutex());
  const auto of_call = [&](const auto& x) { return x.call_id == call_id && x.attempt == attempt; };
  std::erase_if(inbox_, [&](const LinkEvent& event) {
    const Answer* answer = std::get_if<Answer>(&event);
    return answer != nullptr && of_call(*answer);
  });
  const auto call = open_.find({call_id, attempt});
  if (call == open_.end()) return;
  waiting_.erase_if(of_call);
  for (const OpenPart& part : call->second.parts) Release(part);
  open_.erase(call);
  if (lane_ && !lane_->stream().ended()) {
    lane_->stream().Drop([&](const Frame& frame) { return of_call(std::get<Call>(frame.body)); });
    pb::Cancel cancel;
    cancel.set_call_id(call_id);
    cancel.set_attempt(attempt);
    lane_->stream().Send({.body = std::move(cancel)});
  }
  Forward();
}

bool GrpcLink::Poll(std::vector<LinkEvent>* events) {
  absl::MutexLock lock(&loop_.mutex());
  if (lane_) {
    bytes_sent_.store(past_written_ + lane_->stream().bytes_written(), std::memory_order_relaxed);
    bytes_received_.store(past_read_ + lane_->stream().bytes_read(), std::memory_order_relaxed);
  }
  told_ = false;
  if (inbox_.empty()) return false;
  for (LinkEvent& event : inbox_) events->push_back(std::move(event));
  inbox_.clear();
  return true;
}

void GrpcLink::Tick(absl::Time now) {
  if (!lane_) {
    if (!stopping_ && now >= next_attempt_) Connect(now);
    return;
  }
  if (lane_->ending()) return lane_->CutOff(now);
  if (!lane_->up()) {
    if (now >= lane_->deadline()) GiveUpConnecting();
    return;
  }
  if (open_.empty()) {
    suspect_.store(false, std::memory_order_relaxed);
    return;
  }
  const absl::Duration quiet = now - heard_;
  if (quiet < options_.suspect_after) {
    suspect_.store(false, std::memory_order_relaxed);
  } else if (!suspect_.exchange(true, std::memory_order_relaxed)) {
    suspicions_.fetch_add(1, std::memory_order_relaxed);
  }
  if (quiet >= options_.stalled_after) {
    lane_->Close(
        Unavailable("{}: silent for {} with calls open", name(), absl::FormatDuration(quiet)));
  }
}

void GrpcLink::GiveUpConnecting() {
  if (channel_->GetState(false) == GRPC_CHANNEL_READY) {
    return lane_->Close(Unavailable("{}: no hello in time", name()));
  }
  backoff_ = options_.backoff_min;  // the channel has one of its own
  absl::Status before = why();
  lane_->Close(before.ok() ? Unavailable("{}: no connection", name()) : std::move(before));
}

void GrpcLink::LetGo() {
  if (lane_) lane_->Close(Unavailable("{} has drained", name()));
}

void GrpcLink::Stop() {
  stopping_ = true;
  if (!lane_) return;
  lane_->Close(Cancelled("shutting down"));
  lane_->CutOff(absl::InfiniteFuture());  // one that was ending: nobody ticks any more
}

void GrpcLink::OnLaneEnd(absl::Status why) {
  next_attempt_ = SteadyNow() + (refused_ ? options_.backoff_max : backoff_);
  backoff_ = std::min(2 * backoff_, options_.backoff_max);
  if (!open_.empty() || state() == LinkState::kUp || state() == LinkState::kDraining) {
    inbox_.push_back(LinkDown{std::string(why.message()), generation()});
  }
  shares_memory_.store(false, std::memory_order_relaxed);
  suspect_.store(false, std::memory_order_relaxed);
  open_.clear();
  waiting_.clear();
  reserved_bytes_ = reserved_parts_ = 0;
  SetState(refused_ ? LinkState::kRefused : LinkState::kConnecting, std::move(why), peer());
}

void GrpcLink::OnLaneGone() {
  if (!lane_->gone()) return;
  past_written_ += lane_->stream().bytes_written();
  past_read_ += lane_->stream().bytes_read();
  lane_.reset();  // the caller is the lane's last completion and does nothing after this
}

}  // namespace switchyard::expertwire
