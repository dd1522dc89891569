#include "services/expertwire/grpc_server.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "services/base/check.h"
#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/repeat_filter.h"
#include "services/base/status.h"
#include "services/expertwire/completion_loop.h"
#include "services/expertwire/frame_stream.h"
#include "services/expertwire/layout.h"
#include "services/expertwire/memory_mailbox.h"
#include "switchyard/internal/v1/expert.grpc.pb.h"

namespace switchyard::expertwire {
namespace {

// Describe over the callback API; Dispatch goes to the generic service.
class ControlService final
    : public pb::ExpertWorker::WithGenericMethod_Dispatch<
          pb::ExpertWorker::WithCallbackMethod_Describe<pb::ExpertWorker::Service>> {
 public:
  explicit ControlService(const CallHandler& handler) : handler_(handler) {}
  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const pb::DescribeRequest*,
                                     pb::DescribeResponse* response) override {
    *response = handler_.Describe();
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  const CallHandler& handler_;
};

// Whether a beat has passed, also where somebody has set the clock back.
bool Due(absl::Time now, absl::Time& next) {
  if (now < next && next - now <= kTick) return false;
  next = now + kTick;
  return true;
}

// An answer that says OVERLOADED or BAD instead of bringing rows.
void StripRows(Answer* answer, pb::SegmentStatus status, std::string error) {
  std::fill(answer->status.begin(), answer->status.end(), status);
  answer->sums = answer->rows = 0;
  answer->payload = RowBuffer();
  answer->error = std::move(error);
}

}  // namespace

struct GrpcServer::Impl {
  class Peer;
  static constexpr size_t kIdleRowBytes = 64u << 20;

  Impl(CallHandler& h, const GrpcServerOptions& o)
      : handler(h), options(o), control(h), pool(kIdleRowBytes, o.rows) {
    limits.max_frame_bytes = o.max_frame_bytes;
    limits.max_answer_bytes = o.max_frame_bytes;
    if (o.shared_memory) OpenMailbox();
  }

  void OpenMailbox();

  void AcceptNext();
  void Loop();
  void Tick();
  void KeepAlive();
  // Tells the routers what the worker holds where that has changed.
  void SpreadHolds();
  void Sweep();
  // Ends the oldest streams that no router is counted by where there are too many.
  void LimitStrangers();
  std::vector<Peer*> Strangers() const;

  CallHandler& handler;
  const GrpcServerOptions options;
  DecodeLimits limits;
  ControlService control;
  grpc::AsyncGenericService generic;
  RowBufferPool pool;
  log::RepeatFilter refusals;
  std::unique_ptr<CompletionLoop> loop;
  std::string host;
  std::unique_ptr<MemoryMailbox> mailbox;  // null: no shared memory; under the loop's mutex

  // Under the loop's mutex.
  std::vector<std::shared_ptr<Peer>> peers;  // the last one waits for a stream
  uint64_t routers = 0;
  uint64_t spread_version = 0;  // of what all routers were told that the worker holds
  absl::Time next_spread = absl::InfinitePast();
  bool stopping = false;
  bool helped = false;  // the ticking thread has handled what the serving one has not looked at
  absl::Time next_keep_alive = absl::InfinitePast();

  std::atomic<bool> draining = false, stop_ticking = false, crowded = false;
  std::atomic<int64_t> open_parts = 0;
  std::atomic<uint64_t> routers_now = 0, broken = 0, refused = 0, unknown_cancels = 0;
  std::array<std::atomic<uint64_t>, 17> ended_by_code{};
  std::thread serving, ticking;
};

// One stream, from the request for it to its last completion. Everything under the loop's mutex but
// where the sink's functions take it.
class GrpcServer::Impl::Peer final : public AnswerSink,
                                     public FrameStream::Owner,
                                     public std::enable_shared_from_this<Peer> {
 public:
  explicit Peer(Impl& server)
      : server_(server),
        rpc_(&context_),
        stream_(*this, *server.loop, server.pool, server.options.grant, server.limits) {}

  void Request() {
    server_.generic.RequestCall(&context_, &rpc_, server_.loop->queue(),
                                static_cast<grpc::ServerCompletionQueue*>(server_.loop->queue()),
                                &arrived_);
  }

  bool gone() const { return gone_; }

  void OnFrame(Frame frame) override;
  void OnEnd(absl::Status why) override;
  void OnQuiet() override {
    if (!stream_.writing() && !end_status_.ok()) return Finish(std::exchange(end_status_, {}));
    gone_ = !stream_.outstanding() && !finishing_;
  }

  void OnAnswer(Answer answer) override;
  void OnComputing(uint64_t call_id, uint32_t attempt) override {
    absl::MutexLock lock(&server_.loop->mutex());
    if (const auto it = open_.find({call_id, attempt}); it != open_.end()) {
      it->second.computing = true;
    }
  }

  void SendDrain() {
    if (greeted_) stream_.Send({.body = pb::Drain()});
  }
  void SendProgress();
  // Says what the worker holds, if it was not said yet. `holds` is of `version`.
  bool must_hear(uint64_t version) const { return hears_holds_ && holds_version_ != version; }
  void SendHolds(const pb::Holds& holds, uint64_t version);
  // Ends what has had its time: a stream without hello, one that was refused and stays, one whose
  // peer does not read its end.
  void CutOff(absl::Time now);
  // Open, and not (or not any more) a router's.
  bool stranger() const { return open_stream_ && !greeted_ && !stream_.ended(); }
  // Whose lane it is, once it is greeted: the process and its name.
  const std::pair<uint64_t, std::string>& router() const { return router_; }
  bool is_first_lane() const { return greeted_ && first_lane_; }
  bool is_bulk_lane() const { return greeted_ && !first_lane_; }
  void Refuse(absl::Status why) {
    server_.refused.fetch_add(1);
    refusal_ = why;
    OnEnd(std::move(why));
  }
  bool written() const { return stream_.ended() || stream_.nothing_to_write(); }

 private:
  struct OpenCall {
    int parts = 0;
    bool computing = false;
  };
  template <void (Peer::*kThen)(bool)>
  struct Then final : Completion {
    explicit Then(Peer& p) : peer(p) {}
    void OnCompletion(bool ok) override { (peer.*kThen)(ok); }
    Peer& peer;
  };

  void OnArrived(bool ok);
  void OnFinished(bool) {
    finishing_ = false;
    OnQuiet();
  }
  void Greet(const pb::Hello& hello);
  void TakeMemory(uint64_t nonce);
  void Finish(const absl::Status& status);
  void CloseOne(uint64_t call_id, uint32_t attempt);
  void DropCall(uint64_t call_id, uint32_t attempt);
  void Leave();

  Impl& server_;
  grpc::GenericServerContext context_;
  grpc::GenericServerAsyncReaderWriter rpc_;
  FrameStream stream_;
  Then<&Peer::OnArrived> arrived_{*this};
  Then<&Peer::OnFinished> finished_{*this};
  std::string id_ = "a router";
  std::pair<uint64_t, std::string> router_;
  absl::Status end_status_;
  absl::Time end_by_ =
      absl::InfiniteFuture();  // of the hello, of a refused stream, of an ended one
  absl::Status refusal_;
  bool first_lane_ = true;
  bool hears_holds_ = false;
  uint32_t revision_ = 0;
  uint64_t nonce_ = 0;          // of the shared memory
  uint64_t holds_version_ = 0;  // that was said
  bool open_stream_ = false, hello_seen_ = false, greeted_ = false, finishing_ = false,
       gone_ = false;
  absl::flat_hash_map<std::pair<uint64_t, uint32_t>, OpenCall> open_;
};

void GrpcServer::Impl::Peer::OnArrived(bool ok) {
  if (!ok) {  // the server shuts down
    gone_ = true;
    return;
  }
  server_.AcceptNext();
  if (server_.peers.size() > 4 * static_cast<size_t>(server_.options.max_routers) + 16) {
    stream_.End();
    return Finish(ResourceExhausted("{} streams are open", server_.peers.size()));
  }
  if (context_.method() != kDispatchMethod) {
    stream_.End();
    return Finish(Unimplemented("method {} does not exist", context_.method()));
  }
  open_stream_ = true;
  end_by_ = SteadyNow() + server_.options.hello_timeout;
  stream_.Open(&rpc_, &rpc_);
  server_.LimitStrangers();
}

void GrpcServer::Impl::Peer::CutOff(absl::Time now) {
  if (now < end_by_) return;
  end_by_ = absl::InfiniteFuture();
  if (stream_.ended()) return context_.TryCancel();
  if (!hello_seen_) {
    return Refuse(DeadlineExceeded("no hello within {}",
                                   absl::FormatDuration(server_.options.hello_timeout)));
  }
  OnEnd(refusal_);
}

void GrpcServer::Impl::Peer::Finish(const absl::Status& status) {
  finishing_ = true;
  end_by_ = SteadyNow() + server_.options.end_patience;
  if (!absl::IsUnavailable(status)) server_.ended_by_code[status.raw_code() % 17].fetch_add(1);
  rpc_.Finish(
      grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message())),
      &finished_);
}

void GrpcServer::Impl::Peer::Greet(const pb::Hello& hello) {
  first_lane_ = hello.lane() == 0;
  revision_ = hello.revision();
  router_ = {hello.incarnation(), hello.peer_id().substr(0, 128)};
  id_ = fmt::format("router {}{}", router_.second, first_lane_ ? "" : " (bulk)");
  holds_version_ = server_.handler.holds_version();  // before the hello, which may then be newer
  pb::Hello mine = server_.handler.hello();
  absl::Status fits = CheckPeer(mine, hello);
  if (fits.ok() && server_.draining.load()) fits = Unavailable("{} is draining", mine.peer_id());
  if (fits.ok() && first_lane_ &&
      server_.routers >= static_cast<uint64_t>(server_.options.max_routers)) {
    fits = ResourceExhausted("{} serves {} routers already", mine.peer_id(), server_.routers);
  }
  if (!fits.ok()) {
    mine.set_refused(std::string(fits.message()));
    server_.refused.fetch_add(1);
    // It comes again within a second.
    if (server_.refusals.Passes(id_, std::string(fits.message()), SteadyNow())) {
      log::Warning("refused {}: {}", id_, ToStd(fits.message()));
    }
  }
  if (fits.ok() && server_.mailbox && hello.host() == server_.host) {
    mine.set_host(server_.host);
    mine.set_mailbox(server_.mailbox->name());
  }
  stream_.Send({.body = std::move(mine)});
  if (!fits.ok()) {  // the router ends the stream once it has read why
    end_by_ = SteadyNow() + server_.options.end_patience;
    refusal_ = std::move(fits);
    return;
  }
  greeted_ = true;
  end_by_ = absl::InfiniteFuture();
  if (first_lane_) {
    server_.routers_now = ++server_.routers;
    hears_holds_ = hello.revision() > 0;
    server_.handler.OnRouter(this);
  }
  constexpr uint64_t kOwnBound = 256u << 20;
  stream_.SetPeerGrant(std::min<uint64_t>(hello.credits_bytes(), kOwnBound),
                       std::min<uint32_t>(hello.credits_frames(), 1u << 16));
  log::Info("{} connected", id_);
}

void GrpcServer::Impl::Peer::OnFrame(Frame frame) {
  if (auto* hello = std::get_if<pb::Hello>(&frame.body)) {
    if (std::exchange(hello_seen_, true)) return OnEnd(InvalidArgument("a second hello"));
    return Greet(*hello);
  }
  if (!greeted_) {
    return OnEnd(FailedPrecondition("a frame without an accepted hello before it"));
  }
  if (auto* call = std::get_if<Call>(&frame.body)) {
    ++open_[{call->call_id, call->attempt}].parts;
    server_.open_parts.fetch_add(1);
    server_.handler.Accept(std::move(*call), shared_from_this());
  } else if (auto* cancel = std::get_if<pb::Cancel>(&frame.body)) {
    DropCall(cancel->call_id(), cancel->attempt());
  } else if (const auto* memory = std::get_if<pb::SharedMemory>(&frame.body)) {
    TakeMemory(memory->nonce());
  } else if (const auto* assign = std::get_if<pb::Assign>(&frame.body)) {
    server_.handler.OnAssign(*assign);
  } else if (const auto* ack = std::get_if<pb::MapAck>(&frame.body)) {
    if (first_lane_) server_.handler.OnMapAck(this, ack->epoch());
  } else if (const auto* prefetch = std::get_if<pb::Prefetch>(&frame.body)) {
    server_.handler.OnPrefetch(*prefetch);
  }
  // Credits were taken by the stream; answers mean nothing to a worker.
}

void GrpcServer::Impl::Peer::TakeMemory(uint64_t nonce) {
  if (stream_.shares_memory() && nonce == nonce_) return stream_.ReadPipe();  // its last over TCP
  if (!server_.mailbox || stream_.shares_memory()) return;
  pb::SharedMemory taken;
  absl::StatusOr<UniqueFd> fd = server_.mailbox->Take(nonce);
  absl::StatusOr<std::unique_ptr<SharedPipe>> pipe =
      fd.ok() ? SharedPipe::Adopt(*std::move(fd)) : fd.status();
  if (!pipe.ok()) {
    log::Warning("{}: no shared memory: {}", id_, ToStd(pipe.status().message()));
    return stream_.Send({.body = std::move(taken)});  // nonce 0: not taken
  }
  taken.set_nonce(nonce);
  nonce_ = nonce;
  stream_.ReadFrom(*std::move(pipe));
  if (revision_ < 2) stream_.ReadPipe();  // such a router does not say when
  stream_.WriteToPipe(Frame{.body = std::move(taken)});
  log::Info("{}: over shared memory", id_);
}

void GrpcServer::Impl::Peer::OnEnd(absl::Status why) {
  stream_.End();
  if (!absl::IsUnavailable(why)) {
    if (refusal_.ok()) server_.broken.fetch_add(1);
    log::Warning("ended the stream of {}: {}", id_, ToStd(why.message()));
  }
  Leave();
  if (!stream_.writing()) return Finish(why);
  end_status_ = std::move(why);  // said once the write before it is through, if the peer reads it
  end_by_ = SteadyNow() + server_.options.end_patience;
}

void GrpcServer::Impl::Peer::Leave() {
  for (const auto& [id, call] : open_) server_.open_parts.fetch_sub(call.parts);
  open_.clear();
  if (std::exchange(greeted_, false)) {
    if (first_lane_) server_.routers_now = --server_.routers;
    hears_holds_ = false;
    log::Info("{} left", id_);
    server_.handler.Forget(this);
  }
}

void GrpcServer::Impl::Peer::CloseOne(uint64_t call_id, uint32_t attempt) {
  const auto it = open_.find({call_id, attempt});
  if (it == open_.end()) return;  // the router left
  server_.open_parts.fetch_sub(1);
  if (--it->second.parts == 0) open_.erase(it);
}

void GrpcServer::Impl::Peer::OnAnswer(Answer answer) {
  absl::MutexLock lock(&server_.loop->mutex());
  CloseOne(answer.call_id, answer.attempt);
  if (stream_.ended()) return;
  const size_t bytes = answer.payload.bytes() + kHeaderRoom + answer.status.size() * 2;
  const size_t waiting = stream_.waiting_bytes() + stream_.waiting_frames() * kHeaderRoom;
  if (2 * bytes > stream_.peer_grant_bytes()) {
    StripRows(&answer, pb::BAD,
              fmt::format("an answer of {} bytes is more than half of the {} bytes of credit",
                          bytes, stream_.peer_grant_bytes()));
  } else if (waiting + bytes > stream_.peer_grant_bytes()) {
    StripRows(&answer, pb::OVERLOADED, "the router does not read its answers");
  }
  stream_.SendPaid({.body = std::move(answer)});
}

void GrpcServer::Impl::Peer::DropCall(uint64_t call_id, uint32_t attempt) {
  if (!open_.contains({call_id, attempt})) {
    server_.unknown_cancels.fetch_add(1);
    return;
  }
  const CallHandler::Dropped dropped = server_.handler.Cancel(this, call_id, attempt);
  for (uint32_t i = 0; i < dropped.parts; ++i) CloseOne(call_id, attempt);
  stream_.Owe(dropped.wire_bytes, dropped.parts);
}

void GrpcServer::Impl::Peer::SendProgress() {
  if (open_.empty() || stream_.ended() || stream_.control_waits()) return;
  pb::Progress progress;
  for (const auto& [id, call] : open_) {
    pb::Progress::Open* open = progress.add_open();
    open->set_call_id(id.first);
    open->set_attempt(id.second);
    open->set_computing(call.computing);
  }
  stream_.Send({.body = std::move(progress)});
}

void GrpcServer::Impl::Peer::SendHolds(const pb::Holds& holds, uint64_t version) {
  if (stream_.ended() || stream_.control_waits()) return;  // later, and then what is true by then
  holds_version_ = version;
  stream_.Send({.body = holds});
}

void GrpcServer::Impl::OpenMailbox() {
  host = HostId();
  if (host.empty()) return;
  absl::StatusOr<std::unique_ptr<MemoryMailbox>> opened = MemoryMailbox::Open();
  if (!opened.ok()) return log::Warning("no shared memory: {}", ToStd(opened.status().message()));
  mailbox = *std::move(opened);
}

void GrpcServer::Impl::AcceptNext() {
  if (stopping) return;
  peers.push_back(std::make_shared<Peer>(*this));
  peers.back()->Request();
}

// The oldest first. Of a router's bulk lanes the newest go with its first lanes: an older one may
// be left of a connection whose end nobody has noticed.
std::vector<GrpcServer::Impl::Peer*> GrpcServer::Impl::Strangers() const {
  absl::flat_hash_map<std::pair<uint64_t, std::string>, int> free;  // first lanes of each router
  for (const auto& peer : peers) {
    if (peer->is_first_lane()) ++free[peer->router()];
  }
  std::vector<Peer*> out;
  for (auto it = peers.rbegin(); it != peers.rend(); ++it) {
    Peer& peer = **it;
    if (peer.stranger() || (peer.is_bulk_lane() && --free[peer.router()] < 0)) {
      out.push_back(&peer);
    }
  }
  std::ranges::reverse(out);
  return out;
}

void GrpcServer::Impl::LimitStrangers() {
  const auto most = static_cast<size_t>(options.max_routers);
  if (peers.size() <= most) return;
  const std::vector<Peer*> strangers = Strangers();
  for (size_t i = 0; i + most < strangers.size(); ++i) {
    strangers[i]->Refuse(ResourceExhausted(
        "{} streams are open without a hello, or bulk without their router", strangers.size()));
  }
}

void GrpcServer::Impl::Sweep() {
  std::erase_if(peers, [](const std::shared_ptr<Peer>& peer) { return peer->gone(); });
}

// With the mutex held, by whichever thread comes by.
void GrpcServer::Impl::KeepAlive() {
  const absl::Time now = SteadyNow();
  if (!Due(now, next_keep_alive)) return;
  for (const auto& peer : peers) {
    peer->SendProgress();
    peer->CutOff(now);
  }
}

void GrpcServer::Impl::SpreadHolds() {
  const uint64_t version = handler.holds_version();
  if (version == spread_version) return;
  if (!Due(SteadyNow(), next_spread)) return;
  const pb::Holds holds = handler.holds();
  const auto must_hear = [&](const auto& peer) { return peer->must_hear(version); };
  for (const auto& peer : peers) {
    if (must_hear(peer)) peer->SendHolds(holds, version);
  }
  if (std::none_of(peers.begin(), peers.end(), must_hear)) spread_version = version;
}

// The thread that computes. Polls while there is work and a little longer, then sleeps in gRPC.
void GrpcServer::Impl::Loop() {
  Ladder ladder(options.busy_poll, crowded.load());
  while (true) {
    bool worked = false, sleep = false;
    {
      absl::MutexLock lock(&loop->mutex());
      worked = loop->Poll();
      sleep = crowded.load(std::memory_order_relaxed) && loop->SleepsLightly();
      helped = false;
      KeepAlive();
      SpreadHolds();
      Sweep();
      if (stopping && peers.empty()) return;
    }
    worked |= handler.Compute();
    if (worked) {
      ladder = Ladder(options.busy_poll, crowded.load(std::memory_order_relaxed));
    } else if (sleep || !ladder.Turn()) {
      absl::MutexLock lock(&loop->mutex());
      if (helped || loop->Sleep(SteadyNow() + kTick)) {
        ladder = Ladder(options.busy_poll, crowded.load(std::memory_order_relaxed));
      }
      Sweep();
      if (stopping && peers.empty()) return;
    }
  }
}

// Progress must flow while the other thread computes.
void GrpcServer::Impl::Tick() {
  while (!stop_ticking.load()) {
    absl::SleepFor(kTick);
    if (open_parts.load(std::memory_order_relaxed) == 0) continue;
    crowded.store(MachineIsCrowded(), std::memory_order_relaxed);
    if (!loop->mutex().TryLock()) continue;  // the other thread is at it
    helped |= loop->Poll();
    KeepAlive();
    SpreadHolds();
    loop->mutex().Unlock();
  }
}

GrpcServer::GrpcServer(CallHandler& handler, const GrpcServerOptions& options)
    : impl_(std::make_unique<Impl>(handler, options)) {}

GrpcServer::~GrpcServer() { Stop(); }

void GrpcServer::Register(grpc::ServerBuilder& builder) {
  SY_CHECK(impl_->loop == nullptr);
  impl_->loop = std::make_unique<CompletionLoop>(builder.AddCompletionQueue());
  builder.RegisterService(&impl_->control);
  builder.RegisterAsyncGenericService(&impl_->generic);
}

void GrpcServer::Start() {
  {
    absl::MutexLock lock(&impl_->loop->mutex());
    impl_->AcceptNext();
  }
  impl_->serving = std::thread([this] { impl_->Loop(); });
  impl_->ticking = std::thread([this] { impl_->Tick(); });
}

void GrpcServer::BeginDrain() {
  if (impl_->loop == nullptr || impl_->draining.exchange(true)) return;
  absl::MutexLock lock(&impl_->loop->mutex());
  for (const auto& peer : impl_->peers) peer->SendDrain();
}

bool GrpcServer::Idle() const {
  if (impl_->loop == nullptr) return true;
  if (impl_->open_parts.load() > 0) return false;
  absl::MutexLock lock(&impl_->loop->mutex());
  return std::all_of(impl_->peers.begin(), impl_->peers.end(),
                     [](const auto& peer) { return peer->written(); });
}

void GrpcServer::Stop() {
  if (!impl_->serving.joinable()) return;
  {
    absl::MutexLock lock(&impl_->loop->mutex());
    impl_->stopping = true;
  }
  impl_->serving.join();
  impl_->stop_ticking.store(true);
  impl_->ticking.join();
  absl::MutexLock lock(&impl_->loop->mutex());
  impl_->loop->Close();
}

GrpcServerStats GrpcServer::stats() const {
  GrpcServerStats stats{.routers = impl_->routers_now.load(),
                        .streams_broken = impl_->broken.load(),
                        .refused = impl_->refused.load(),
                        .unknown_cancels = impl_->unknown_cancels.load()};
  for (size_t code = 0; code < stats.ended_by_code.size(); ++code) {
    stats.ended_by_code[code] = impl_->ended_by_code[code].load();
  }
  return stats;
}

}  // namespace switchyard::expertwire
