#include "gateway/upstream/router_client.h"

#include <grpcpp/channel.h>

#include <algorithm>
#include <climits>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/mutex.h"
#include "gateway/upstream/router_stream.h"
#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/rpc/channel.h"
#include "services/rpc/status_map.h"

namespace switchyard::gateway {
namespace {

namespace pb = internal::v1;

constexpr absl::Duration kHelloTimeout = absl::Seconds(5);

ModelInfo InfoOf(const pb::RouterHello& hello) {
  return {.model_fingerprint = hello.model_fingerprint(),
          .numerics_id = hello.numerics_id(),
          .max_model_len = hello.max_model_len(),
          .vocab = hello.vocab(),
          .moe_layers = {hello.moe_layers().begin(), hello.moe_layers().end()},
          .top_k = hello.top_k()};
}

}  // namespace

class RouterClient::Impl {
 public:
  Impl(RouterClientOptions options, const ChannelFactory& channels, StateCallback on_state);

  void Run() {
    keeper_ = std::thread([this] { Keep(); });
  }
  void Stop();

  absl::StatusOr<RequestHandle> Submit(pb::Submit submit, std::shared_ptr<TokenListener> listener);
  void Cancel(const RequestHandle& handle);
  void CancelChoice(const RequestHandle& handle, int choice);
  RoutersState state() const;
  std::optional<ModelInfo> model() const;
  void DescribeExperts(absl::Duration timeout, ExpertsCallback done);

 private:
  struct Request {
    std::shared_ptr<TokenListener> listener;  // null once cancelled
    std::set<int> open;                       // choices whose finish is awaited
  };
  struct ExpertsCall {
    grpc::ClientContext context;
    pb::DescribeExpertsRequest request;
    pb::DescribeExpertsResponse response;
  };
  struct Peer {
    std::string address;
    std::unique_ptr<pb::Router::Stub> stub;
    std::shared_ptr<RouterStream> stream;  // null between attempts
    uint64_t connection = 0;
    bool hello = false, ready = false;
    std::string state = "connecting";
    std::string refusal;  // why we broke the stream ourselves
    ModelInfo info;
    std::unordered_map<uint64_t, Request> requests;
    absl::Duration backoff;
    absl::Time next = absl::InfinitePast();  // attempt, or end of the patience for the hello
  };

  void Keep();
  void Connect(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnMessage(size_t index, const pb::FromRouter& message);
  void OnDone(size_t index, const absl::Status& status);
  void OnGone();
  void OnHello(Peer& peer, const pb::RouterHello& hello) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What holds of all connected routers; without one, what held last.
  void UpdateModel() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnState(Peer& peer, const pb::RouterState& state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnToken(size_t index, const pb::Token& token);
  // Null if it has ended or was cancelled.
  Request* Find(const RequestHandle& handle) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Refuse(Peer& peer, std::string why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string Missing() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void Changed() {
    if (on_state_) on_state_();
  }

  const RouterClientOptions options_;
  const StateCallback on_state_;
  std::thread keeper_;

  mutable absl::Mutex mutex_;
  absl::CondVar wake_;
  std::vector<Peer> peers_ ABSL_GUARDED_BY(mutex_);
  std::optional<ModelInfo> model_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_request_ ABSL_GUARDED_BY(mutex_) = 1;
  // What gRPC still has of ours. Its contexts hold the channels, and the last use of a channel must
  // not end on a thread of gRPC's: where it is the last of the process, too, that thread would join
  // itself.
  int streams_ ABSL_GUARDED_BY(mutex_) = 0;
  std::set<std::shared_ptr<ExpertsCall>> experts_calls_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

RouterClient::Impl::Impl(RouterClientOptions options, const ChannelFactory& channels,
                         StateCallback on_state)
    : options_(std::move(options)), on_state_(std::move(on_state)) {
  for (const std::string& address : options_.addresses) {
    Peer peer;
    peer.address = address;
    peer.stub = pb::Router::NewStub(channels(address));
    peer.backoff = options_.backoff_min;
    peers_.push_back(std::move(peer));
  }
}

void RouterClient::Impl::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    if (std::exchange(stopping_, true)) return;
    wake_.SignalAll();
    for (Peer& peer : peers_) {
      if (peer.stream != nullptr) peer.stream->Break();
    }
    for (const auto& call : experts_calls_) call->context.TryCancel();
  }
  keeper_.join();
  absl::MutexLock lock(&mutex_);
  while (streams_ > 0 || !experts_calls_.empty()) wake_.Wait(&mutex_);
}

// Connects whoever is due, and gives up on a router that says no hello.
void RouterClient::Impl::Keep() {
  absl::MutexLock lock(&mutex_);
  while (!stopping_) {
    const absl::Time now = absl::Now();
    absl::Time next = absl::InfiniteFuture();
    for (size_t i = 0; i < peers_.size(); ++i) {
      Peer& peer = peers_[i];
      if (peer.next <= now) {
        if (peer.stream == nullptr) {
          Connect(i);
        } else {
          peer.next = absl::InfiniteFuture();
          Refuse(peer, "connecting: the router sends no hello");
        }
      }
      next = std::min(next, peer.next);
    }
    wake_.WaitWithDeadline(&mutex_, next);
  }
}

void RouterClient::Impl::Connect(size_t index) {
  Peer& peer = peers_[index];
  pb::ToRouter message;
  pb::GatewayHello& hello = *message.mutable_hello();
  hello.set_protocol_version(1);
  hello.set_gateway_id(options_.gateway_id);
  hello.set_text_fingerprint(options_.text_fingerprint);
  ++peer.connection;
  ++streams_;
  peer.next = absl::Now() + kHelloTimeout;
  peer.stream = RouterStream::Start(
      *peer.stub, std::move(message), options_.max_queued_writes,
      {.on_message = [this, index](const pb::FromRouter& m) { OnMessage(index, m); },
       .on_done = [this, index](const absl::Status& status) { OnDone(index, status); },
       .on_gone = [this] { OnGone(); }});
}

void RouterClient::Impl::OnMessage(size_t index, const pb::FromRouter& message) {
  if (message.has_step()) {
    for (const pb::Token& token : message.step().tokens()) OnToken(index, token);
    return;
  }
  {
    absl::MutexLock lock(&mutex_);
    Peer& peer = peers_[index];
    if (message.has_hello()) OnHello(peer, message.hello());
    if (message.has_state()) OnState(peer, message.state());
  }
  Changed();
}

void RouterClient::Impl::OnHello(Peer& peer, const pb::RouterHello& hello) {
  if (hello.text_fingerprint() != options_.text_fingerprint) {
    return Refuse(
        peer, fmt::format("refused: config or tokenizer differ: text fingerprint {} of "
                          "router {}, {} of this gateway",
                          hello.text_fingerprint(), hello.router_id(), options_.text_fingerprint));
  }
  for (const Peer& other : peers_) {
    if (&other == &peer || !other.hello ||
        other.info.model_fingerprint == hello.model_fingerprint()) {
      continue;
    }
    return Refuse(
        peer, fmt::format("refused: model fingerprint {} differs from {} of router {}",
                          hello.model_fingerprint(), other.info.model_fingerprint, other.address));
  }
  peer.hello = true;
  peer.info = InfoOf(hello);
  peer.backoff = options_.backoff_min;
  peer.next = absl::InfiniteFuture();
  UpdateModel();
}

void RouterClient::Impl::UpdateModel() {
  std::optional<ModelInfo> model;
  std::set<std::string> numerics_ids;
  for (const Peer& peer : peers_) {
    if (!peer.hello) continue;
    const int shortest = std::min(peer.info.max_model_len, model ? model->max_model_len : INT_MAX);
    model = peer.info;
    model->max_model_len = shortest;
    numerics_ids.insert(peer.info.numerics_id);
  }
  if (!model) return;
  model->numerics_id = absl::StrJoin(numerics_ids, ",");
  model_ = std::move(model);
}

void RouterClient::Impl::OnState(Peer& peer, const pb::RouterState& state) {
  if (!peer.hello) return;
  const bool ready = state.ready() && !state.draining();
  if (ready != peer.ready && options_.log_states) {
    log::Info("router {} is {}", peer.address,
              ready              ? "ready"
              : state.draining() ? "draining"
                                 : "not ready: " + state.missing());
  }
  peer.ready = ready;
  peer.state = state.draining() ? "draining"
               : ready          ? "ready"
                       : "missing: " + absl::StrReplaceAll(state.missing(), {{"\n", "; "}});
}

// The stream ends by our will; OnDone then shows `why` instead of its status.
void RouterClient::Impl::Refuse(Peer& peer, std::string why) {
  peer.refusal = std::move(why);
  peer.backoff = options_.backoff_max;
  peer.stream->Break();
}

void RouterClient::Impl::OnToken(size_t index, const pb::Token& token) {
  std::shared_ptr<TokenListener> listener;
  {
    absl::MutexLock lock(&mutex_);
    auto& requests = peers_[index].requests;
    auto it = requests.find(token.request());
    // Of a request that was cancelled, or of a choice that has ended.
    if (it == requests.end() || it->second.open.count(token.choice()) == 0) return;
    listener = it->second.listener;
    if (token.finish() != pb::Token::NONE) it->second.open.erase(token.choice());
    if (it->second.open.empty()) requests.erase(it);
  }
  if (listener != nullptr) listener->OnToken(token);
}

void RouterClient::Impl::OnDone(size_t index, const absl::Status& status) {
  std::vector<std::shared_ptr<TokenListener>> broken;
  std::string address;
  {
    absl::MutexLock lock(&mutex_);
    Peer& peer = peers_[index];
    address = peer.address;
    for (auto& [id, request] : peer.requests) {
      if (request.listener != nullptr) broken.push_back(std::move(request.listener));
    }
    peer.requests.clear();
    const bool was_up = peer.hello;
    peer.stream = nullptr;
    peer.hello = peer.ready = false;
    UpdateModel();
    std::string why = std::exchange(peer.refusal, "");
    if (why.empty()) {
      const bool refused = status.code() == absl::StatusCode::kFailedPrecondition;
      if (refused) peer.backoff = options_.backoff_max;
      const bool lone = !was_up && status.code() == absl::StatusCode::kUnavailable;
      why = fmt::format("{}: {}{}", refused ? "refused" : "connecting",
                        status.ok() ? "the router ended the stream" : ToStd(status.message()),
                        lone ? rpc::kUnreachedHint : "");
    }
    const bool news = was_up || why.rfind("refused", 0) == 0;
    if (!stopping_ && options_.log_states && news && why != peer.state) {
      const bool expected = status.ok() && peer.state == "draining";
      log::Write(expected ? log::Level::kInfo : log::Level::kWarning,
                 fmt::format("router {}: {}", peer.address, why));
    }
    peer.state = std::move(why);
    peer.next = absl::Now() + peer.backoff;
    peer.backoff = std::min(peer.backoff * 2, options_.backoff_max);
    wake_.SignalAll();
  }
  const absl::Status error =
      Unavailable("the stream to router {} broke: {}", address,
                  status.ok() ? "the router ended it" : std::string(ToStd(status.message())));
  for (const auto& listener : broken) listener->OnBroken(error);
  Changed();
}

void RouterClient::Impl::OnGone() {
  absl::MutexLock lock(&mutex_);
  --streams_;
  wake_.SignalAll();
}

absl::StatusOr<RequestHandle> RouterClient::Impl::Submit(pb::Submit submit,
                                                         std::shared_ptr<TokenListener> listener) {
  absl::MutexLock lock(&mutex_);
  const size_t n = peers_.size();
  size_t best = n;
  for (size_t k = 0; k < n; ++k) {
    const size_t i = (k + next_request_) % n;  // equals take turns
    if (!peers_[i].ready) continue;
    if (best == n || peers_[i].requests.size() < peers_[best].requests.size()) best = i;
  }
  if (best == n) return Unavailable("no router is ready: {}", Missing());
  Peer& peer = peers_[best];
  const uint64_t id = next_request_++;
  Request request{.listener = std::move(listener)};
  for (int choice = 0; choice < std::max(1, submit.n()); ++choice) request.open.insert(choice);
  submit.set_request(id);
  pb::ToRouter message;
  *message.mutable_submit() = std::move(submit);
  peer.requests.emplace(id, std::move(request));
  // Under the lock, so that the answer finds the request.
  absl::Status sent = peer.stream->Send(std::move(message), RouterStream::Bound::kQueue);
  if (!sent.ok()) {
    peer.requests.erase(id);
    return Annotate(sent, "router " + peer.address);
  }
  return RequestHandle{.router = best, .connection = peer.connection, .request = id};
}

RouterClient::Impl::Request* RouterClient::Impl::Find(const RequestHandle& handle) {
  if (handle.router >= peers_.size()) return nullptr;
  Peer& peer = peers_[handle.router];
  auto it = peer.requests.find(handle.request);
  if (peer.connection != handle.connection || it == peer.requests.end()) return nullptr;
  return it->second.listener == nullptr ? nullptr : &it->second;
}

void RouterClient::Impl::Cancel(const RequestHandle& handle) {
  std::shared_ptr<TokenListener> released;  // after the lock: its destructor is not ours
  absl::MutexLock lock(&mutex_);
  Request* request = Find(handle);
  if (request == nullptr) return;
  // Kept until its last event: it is load at that router.
  released = std::exchange(request->listener, nullptr);
  pb::ToRouter message;
  message.mutable_cancel()->set_request(handle.request);
  // Beyond the bound of the queue, but at most one a request and choice. A stream that has just
  // ended needs none.
  peers_[handle.router].stream->Send(std::move(message), RouterStream::Bound::kNone).IgnoreError();
}

void RouterClient::Impl::CancelChoice(const RequestHandle& handle, int choice) {
  {
    absl::MutexLock lock(&mutex_);
    Request* request = Find(handle);
    if (request == nullptr || request->open.count(choice) == 0) return;
    if (request->open.size() > 1) {
      request->open.erase(choice);
      pb::ToRouter message;
      message.mutable_cancel()->set_request(handle.request);
      message.mutable_cancel()->set_choice(choice);
      peers_[handle.router]
          .stream->Send(std::move(message), RouterStream::Bound::kNone)
          .IgnoreError();
      return;
    }
  }
  Cancel(handle);
}

std::string RouterClient::Impl::Missing() const {
  std::vector<std::string> lines;
  for (const Peer& peer : peers_) {
    lines.push_back(fmt::format("router {}: {}", peer.address, peer.state));
  }
  return absl::StrJoin(lines, "; ");
}

RoutersState RouterClient::Impl::state() const {
  absl::MutexLock lock(&mutex_);
  RoutersState out;
  for (const Peer& peer : peers_) {
    out.ready |= peer.ready;
    out.routers.push_back({.address = peer.address,
                           .ready = peer.ready,
                           .state = peer.state,
                           .requests = static_cast<int>(peer.requests.size())});
  }
  if (!out.ready) out.missing = Missing();
  return out;
}

std::optional<ModelInfo> RouterClient::Impl::model() const {
  absl::MutexLock lock(&mutex_);
  return model_;
}

void RouterClient::Impl::DescribeExperts(absl::Duration timeout, ExpertsCallback done) {
  // Shared by the calls; the last one to end calls `done`.
  struct Gather {
    explicit Gather(ExpertsCallback callback) : done(std::move(callback)) {}
    ~Gather() { done(std::move(answers)); }
    ExpertsCallback done;
    absl::Mutex mutex;
    std::vector<pb::DescribeExpertsResponse> answers;
  };
  auto gather =
      std::make_shared<Gather>(std::move(done));  // before the lock: `done` runs outside it
  absl::MutexLock lock(&mutex_);
  for (const Peer& peer : peers_) {
    if (!peer.hello) continue;
    auto call = std::make_shared<ExpertsCall>();
    experts_calls_.insert(call);
    call->context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    ExpertsCall& c = *call;
    peer.stub->async()->DescribeExperts(
        &c.context, &c.request, &c.response,
        [this, call = std::move(call), gather](const grpc::Status& status) mutable {
          if (status.ok()) {
            absl::MutexLock answers_lock(&gather->mutex);
            gather->answers.push_back(std::move(call->response));
          }
          gather = nullptr;
          absl::MutexLock calls_lock(&mutex_);
          experts_calls_.erase(call);
          call = nullptr;
          wake_.SignalAll();
        });
  }
}

RouterClient::RouterClient(RouterClientOptions options, const ChannelFactory& channels,
                           StateCallback on_state)
    : impl_(std::make_unique<Impl>(std::move(options), channels, std::move(on_state))) {
  impl_->Run();
}

RouterClient::~RouterClient() { Stop(); }

void RouterClient::Stop() { impl_->Stop(); }

absl::StatusOr<RequestHandle> RouterClient::Submit(pb::Submit submit,
                                                   std::shared_ptr<TokenListener> listener) {
  return impl_->Submit(std::move(submit), std::move(listener));
}

void RouterClient::Cancel(const RequestHandle& handle) { impl_->Cancel(handle); }

void RouterClient::CancelChoice(const RequestHandle& handle, int choice) {
  impl_->CancelChoice(handle, choice);
}

RoutersState RouterClient::state() const { return impl_->state(); }

std::optional<ModelInfo> RouterClient::model() const { return impl_->model(); }

void RouterClient::DescribeExperts(absl::Duration timeout, ExpertsCallback done) const {
  impl_->DescribeExperts(timeout, std::move(done));
}

}  // namespace switchyard::gateway
