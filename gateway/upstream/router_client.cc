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
#include "services/base/clock.h"
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
  void Follow(const std::vector<std::string>& addresses);

  absl::StatusOr<uint64_t> Submit(pb::Submit submit, std::shared_ptr<TokenListener> listener,
                                  SubmitTerms terms);
  void Cancel(uint64_t id);
  void CancelChoice(uint64_t id, int choice);
  RoutersState state() const;
  std::optional<ModelInfo> model() const;
  void DescribeExperts(absl::Duration timeout, ExpertsCallback done);

 private:
  static constexpr size_t kNone = SIZE_MAX;
  struct Request {
    std::shared_ptr<TokenListener> listener;  // null once cancelled
    std::set<int> open;                       // choices whose finish is awaited
    size_t router = kNone;                    // index into peers_; none: it waits for one
    Numerics numerics;                        // of that router, then
    uint32_t attempt = 0;
    bool lost = false;  // the listener knows that its router is gone
    // While it waits:
    pb::Submit submit;
    SubmitTerms terms;
    absl::Time until;
  };
  using News = std::vector<std::pair<std::shared_ptr<TokenListener>, Loss>>;
  struct ExpertsCall {
    grpc::ClientContext context;
    pb::DescribeExpertsRequest request;
    v1::RouterExperts response;
  };
  struct Peer {
    std::string address;
    bool named = true;  // else it is left, and its place may become another's once that is done
    bool left() const { return !named && stream == nullptr; }
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<pb::Router::Stub> stub;
    std::shared_ptr<RouterStream> stream;  // null between attempts
    bool hello = false, ready = false;
    std::string state = "connecting";
    std::string refusal;  // why we broke the stream ourselves
    ModelInfo info;
    int requests = 0;
    absl::Duration silence_max = absl::InfiniteDuration();
    absl::Time heard;
    absl::Duration backoff;
    absl::Time next = absl::InfinitePast();  // attempt, or end of the patience for the hello
  };

  void Keep();
  // What is due at a router or for requests that wait; when to look again.
  absl::Time Mind(size_t index, absl::Time now, News* news) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Time MindWaiting(absl::Time now, News* news) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddPeer(const std::string& address, const std::shared_ptr<grpc::Channel>& channel)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Connect(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnMessage(size_t index, const pb::FromRouter& message);
  void OnDone(size_t index, const absl::Status& status);
  void OnGone();
  void OnHello(Peer& peer, const pb::RouterHello& hello) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What holds of all connected routers; without one, what held last.
  void UpdateModel() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnState(Peer& peer, const pb::RouterState& state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnToken(size_t index, const pb::Token& token);
  // Whether the router may have this request, as far as it takes any.
  bool Suits(const Peer& peer, const Request& request) const;
  // To the least loaded router that is ready; NOT_FOUND where none is.
  absl::Status Send(uint64_t id, Request& request, RouterStream::Bound bound, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Until when it may wait for one.
  absl::Time Until(const SubmitTerms& terms, absl::Time now) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void Forget(uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Its requests have no router any more.
  void Lose(size_t index, Loss::Reason reason, const absl::Status& why, News* news)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetReady(Peer& peer, bool ready) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void Tell(const News& news) {
    for (const auto& [listener, loss] : news) listener->OnBroken(loss);
  }
  // Null if it has ended or was cancelled.
  Request* Find(uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Refuse(Peer& peer, std::string why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string Missing() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  absl::Status NoneFor(const Request& request) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void Changed() {
    if (on_state_) on_state_();
  }

  const RouterClientOptions options_;
  const ChannelFactory channels_;
  const StateCallback on_state_;
  std::thread keeper_;

  mutable absl::Mutex mutex_;
  SteadyCondVar wake_;
  std::vector<Peer> peers_ ABSL_GUARDED_BY(mutex_);
  std::optional<ModelInfo> model_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_request_ ABSL_GUARDED_BY(mutex_) = 1;
  std::unordered_map<uint64_t, Request> requests_ ABSL_GUARDED_BY(mutex_);
  std::set<uint64_t> waiting_ ABSL_GUARDED_BY(mutex_);  // of them
  // Since when no router is ready; the future: one is.
  absl::Time outage_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  // What gRPC still has of ours. Its contexts hold the channels, and the last use of a channel must
  // not end on a thread of gRPC's: where it is the last of the process, too, that thread would join
  // itself.
  int streams_ ABSL_GUARDED_BY(mutex_) = 0;
  std::set<std::shared_ptr<ExpertsCall>> experts_calls_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

RouterClient::Impl::Impl(RouterClientOptions options, const ChannelFactory& channels,
                         StateCallback on_state)
    : options_(std::move(options)), channels_(channels), on_state_(std::move(on_state)) {
  absl::MutexLock lock(&mutex_);
  for (const std::string& address : options_.addresses) AddPeer(address, channels_(address));
}

// In the place of one that was left, or at a new index.
void RouterClient::Impl::AddPeer(const std::string& address,
                                 const std::shared_ptr<grpc::Channel>& channel) {
  if (channel == nullptr) return;
  auto place = std::find_if(peers_.begin(), peers_.end(), [](const Peer& p) { return p.left(); });
  if (place == peers_.end()) place = peers_.emplace(peers_.end());
  *place = Peer();
  place->address = address;
  place->channel = channel;
  place->stub = pb::Router::NewStub(channel);
  place->backoff = options_.backoff_min;
}

void RouterClient::Impl::Follow(const std::vector<std::string>& addresses) {
  std::set<std::string> fresh(addresses.begin(), addresses.end());
  {
    absl::MutexLock lock(&mutex_);
    for (Peer& peer : peers_) {
      const bool named = fresh.contains(peer.address);
      if (!named && !peer.named) continue;
      fresh.erase(peer.address);
      if (named == peer.named) continue;
      peer.named = named;
      peer.next = named && peer.stream == nullptr ? absl::InfinitePast() : peer.next;
      if (!named) SetReady(peer, false);
    }
    wake_.SignalAll();
  }
  std::vector<std::pair<std::string, std::shared_ptr<grpc::Channel>>> channels;
  for (const std::string& address : fresh) channels.emplace_back(address, channels_(address));
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_) return;
    for (const auto& [address, channel] : channels) AddPeer(address, channel);
    wake_.SignalAll();
  }
  Changed();
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
  News news;
  {
    absl::MutexLock lock(&mutex_);
    MindWaiting(absl::InfiniteFuture(), &news);
  }
  Tell(news);
  absl::MutexLock lock(&mutex_);
  while (streams_ > 0 || !experts_calls_.empty()) wake_.Wait(&mutex_);
}

void RouterClient::Impl::Keep() {
  absl::MutexLock lock(&mutex_);
  absl::Time planned = absl::InfiniteFuture();
  while (!stopping_) {
    const absl::Time now = SteadyNow();
    // It was this process that slept: the routers get their time anew.
    const bool late = now - planned > options_.router_silence_max / 4;
    News news;
    planned = absl::InfiniteFuture();
    for (size_t i = 0; i < peers_.size(); ++i) {
      if (late) peers_[i].heard = now;
      planned = std::min(planned, Mind(i, now, &news));
    }
    planned = std::min(planned, MindWaiting(now, &news));
    if (news.empty()) {
      wake_.WaitUntil(&mutex_, planned);
      continue;
    }
    mutex_.Unlock();
    Tell(news);
    Changed();
    mutex_.Lock();
  }
}

// Connects a router that is due, and gives up on one that says no hello or has fallen silent.
absl::Time RouterClient::Impl::Mind(size_t index, absl::Time now, News* news) {
  Peer& peer = peers_[index];
  if (peer.left()) return absl::InfiniteFuture();
  if (!peer.named && peer.requests == 0) peer.stream->Break();
  if (peer.next <= now) {
    if (peer.stream == nullptr) {
      Connect(index);
    } else {
      peer.next = absl::InfiniteFuture();
      Refuse(peer, "connecting: the router sends no hello");
    }
  }
  if (!peer.hello) return peer.next;
  if (now < peer.heard + peer.silence_max)
    return std::min(peer.next, peer.heard + peer.silence_max);
  const std::string silence =
      fmt::format("nothing came from it for {}", absl::FormatDuration(peer.silence_max));
  if (options_.log_states) log::Warning("router {}: {}", peer.address, silence);
  Lose(index, Loss::Reason::kSilent, Unavailable("router {} is lost: {}", peer.address, silence),
       news);
  peer.hello = false;
  SetReady(peer, false);
  UpdateModel();
  peer.state = "connecting: " + silence;
  Refuse(peer, peer.state);
  return peer.next;
}

absl::Time RouterClient::Impl::MindWaiting(absl::Time now, News* news) {
  absl::Time next = absl::InfiniteFuture();
  for (auto at = waiting_.begin(); at != waiting_.end();) {
    const uint64_t id = *at++;
    Request& request = requests_.at(id);
    const bool over = request.until <= now;
    if (!over && now < request.terms.not_before) {
      next = std::min({next, request.until, request.terms.not_before});
    } else if (!stopping_ && Send(id, request, RouterStream::Bound::kNone, now).ok()) {
      waiting_.erase(id);
    } else if (over) {
      const Loss loss = {.status = NoneFor(request),
                         .reason = Loss::Reason::kNoRouter,
                         .attempt = request.attempt};
      if (request.listener != nullptr) news->emplace_back(std::move(request.listener), loss);
      Forget(id);
    } else {
      next = std::min(next, request.until);
    }
  }
  return next;
}

void RouterClient::Impl::Lose(size_t index, Loss::Reason reason, const absl::Status& why,
                              News* news) {
  for (auto& [id, request] : requests_) {
    if (request.router != index || request.listener == nullptr) continue;
    if (std::exchange(request.lost, true)) continue;
    news->emplace_back(request.listener, Loss{.status = why,
                                              .reason = reason,
                                              .attempt = request.attempt,
                                              .numerics = request.numerics});
  }
}

void RouterClient::Impl::SetReady(Peer& peer, bool ready) {
  peer.ready = ready && peer.named;
  const bool any = std::any_of(peers_.begin(), peers_.end(), [](const Peer& p) { return p.ready; });
  if (any) {
    outage_ = absl::InfiniteFuture();
  } else if (outage_ == absl::InfiniteFuture()) {
    outage_ = SteadyNow();
  }
  wake_.SignalAll();
}

void RouterClient::Impl::Connect(size_t index) {
  Peer& peer = peers_[index];
  pb::ToRouter message;
  pb::GatewayHello& hello = *message.mutable_hello();
  hello.set_protocol_version(1);
  hello.set_gateway_id(options_.gateway_id);
  hello.set_text_fingerprint(options_.text_fingerprint);
  ++streams_;
  peer.next = SteadyNow() + kHelloTimeout;
  rpc::RetryNow(*peer.channel);
  peer.stream = RouterStream::Start(
      *peer.stub, std::move(message), options_.max_queued_writes,
      {.on_message = [this, index](const pb::FromRouter& m) { OnMessage(index, m); },
       .on_done = [this, index](const absl::Status& status) { OnDone(index, status); },
       .on_gone = [this] { OnGone(); }});
}

void RouterClient::Impl::OnMessage(size_t index, const pb::FromRouter& message) {
  for (const pb::Token& token : message.step().tokens()) OnToken(index, token);
  {
    absl::MutexLock lock(&mutex_);
    Peer& peer = peers_[index];
    peer.heard = SteadyNow();
    if (!message.has_hello() && !message.has_state()) return;
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
  // Two that are late are no silence yet.
  peer.silence_max = absl::InfiniteDuration();
  if (hello.heartbeat_ms() > 0) {
    peer.silence_max = std::max(options_.router_silence_max,
                                absl::Milliseconds(3 * int64_t{hello.heartbeat_ms()}));
  }
  wake_.SignalAll();
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
  if (!peer.hello || !peer.named) return;
  const bool ready = state.ready() && !state.draining();
  if (ready != peer.ready && options_.log_states) {
    log::Info("router {} is {}", peer.address,
              ready              ? "ready"
              : state.draining() ? "draining"
                                 : "not ready: " + state.missing());
  }
  SetReady(peer, ready);
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
    auto it = requests_.find(token.request());
    // Of a request that was cancelled, or of a choice that has ended.
    if (it == requests_.end() || it->second.router != index) return;
    if (it->second.open.count(token.choice()) == 0) return;
    listener = it->second.listener;
    if (token.finish() != pb::Token::NONE) it->second.open.erase(token.choice());
    if (it->second.open.empty()) Forget(token.request());
  }
  if (listener != nullptr) listener->OnToken(token);
}

void RouterClient::Impl::OnDone(size_t index, const absl::Status& status) {
  News news;
  std::vector<Request> gone;  // released after the lock: destructors of listeners are not ours
  {
    absl::MutexLock lock(&mutex_);
    Peer& peer = peers_[index];
    Lose(index, status.ok() ? Loss::Reason::kEnded : Loss::Reason::kBroken,
         Unavailable("the stream to router {} broke: {}", peer.address,
                     status.ok() ? "the router ended it" : std::string(ToStd(status.message()))),
         &news);
    std::erase_if(requests_, [&](auto& entry) {
      if (entry.second.router != index) return false;
      gone.push_back(std::move(entry.second));
      return true;
    });
    peer.requests = 0;
    const bool was_up = peer.hello;
    peer.stream = nullptr;
    peer.hello = false;
    SetReady(peer, false);
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
    peer.next = SteadyNow() + peer.backoff;
    peer.backoff = std::min(peer.backoff * 2, options_.backoff_max);
    wake_.SignalAll();
  }
  Tell(news);
  Changed();
}

void RouterClient::Impl::OnGone() {
  absl::MutexLock lock(&mutex_);
  --streams_;
  wake_.SignalAll();
}

absl::StatusOr<uint64_t> RouterClient::Impl::Submit(pb::Submit submit,
                                                    std::shared_ptr<TokenListener> listener,
                                                    SubmitTerms terms) {
  std::shared_ptr<TokenListener> refused;  // after the lock: its destructor is not ours
  absl::MutexLock lock(&mutex_);
  if (stopping_) return Unavailable("the gateway is shutting down");
  const absl::Time now = SteadyNow();
  const uint64_t id = next_request_++;
  // Before it is sent, so that the answer finds the request.
  Request& request = requests_[id];
  request.listener = std::move(listener);
  for (int choice = 0; choice < std::max(1, submit.n()); ++choice) {
    const bool ended = choice < submit.choices_size() && submit.choices(choice).ended();
    if (!ended) request.open.insert(choice);
  }
  submit.set_request(id);
  request.attempt = submit.attempt();
  request.submit = std::move(submit);
  request.terms = std::move(terms);
  absl::Status sent = NotFound("");
  if (request.terms.not_before <= now) {
    const bool fresh = !request.terms.continued;
    sent = Send(id, request, fresh ? RouterStream::Bound::kQueue : RouterStream::Bound::kNone, now);
  }
  if (sent.ok()) return id;
  request.until = Until(request.terms, now);
  const bool wait = sent.code() == absl::StatusCode::kNotFound && request.until > now;
  if (wait && (request.terms.continued || waiting_.size() < options_.max_queued_writes)) {
    waiting_.insert(id);
    wake_.SignalAll();
    return id;
  }
  if (wait) sent = ResourceExhausted("{} requests wait for a router already", waiting_.size());
  if (sent.code() == absl::StatusCode::kNotFound) sent = NoneFor(request);
  refused = std::move(request.listener);
  requests_.erase(id);
  return sent;
}

bool RouterClient::Impl::Suits(const Peer& peer, const Request& request) const {
  if (!request.terms.continued) return true;
  const Numerics& like = request.terms.like;
  const int64_t length = int64_t{request.submit.prompt_size()} + request.submit.max_tokens();
  return (like.model_fingerprint.empty() ||
          like.model_fingerprint == peer.info.model_fingerprint) &&
         (like.numerics_id.empty() || like.numerics_id == peer.info.numerics_id ||
          options_.allow_mixed_numerics) &&
         length <= peer.info.max_model_len;
}

absl::Status RouterClient::Impl::Send(uint64_t id, Request& request, RouterStream::Bound bound,
                                      absl::Time now) {
  while (true) {
    const size_t n = peers_.size();
    size_t best = n;
    for (size_t k = 0; k < n; ++k) {
      const size_t i = (k + id) % n;  // equals take turns
      if (!peers_[i].ready || !Suits(peers_[i], request)) continue;
      if (best == n || peers_[i].requests < peers_[best].requests) best = i;
    }
    if (best == n) return NotFound("");
    Peer& peer = peers_[best];
    if (request.terms.deadline != absl::InfiniteFuture()) {
      const int64_t left = absl::ToInt64Microseconds(request.terms.deadline - now);
      request.submit.set_deadline_left_us(std::max<int64_t>(1, left));
    }
    const std::string& like = request.terms.like.numerics_id;
    if (!like.empty() && like != peer.info.numerics_id) {
      log::Warning("request \"{}\" goes on with numerics id {}; it began with {}",
                   request.submit.trace_id(), peer.info.numerics_id, like);
    }
    pb::ToRouter message;
    message.mutable_submit()->Swap(&request.submit);
    const absl::Status sent = peer.stream->Send(std::move(message), bound);
    if (sent.ok()) {
      request.router = best;
      request.numerics = {peer.info.model_fingerprint, peer.info.numerics_id};
      ++peer.requests;
      return sent;
    }
    message.mutable_submit()->Swap(&request.submit);
    if (sent.code() != absl::StatusCode::kUnavailable) {
      return Annotate(sent, "router " + peer.address);
    }
    SetReady(peer, false);  // its OnDone is on the way
  }
}

absl::Time RouterClient::Impl::Until(const SubmitTerms& terms, absl::Time now) const {
  const absl::Time since = terms.continued ? now : outage_;
  const absl::Time until = since + options_.router_wait;
  return std::min(std::max(until, terms.not_before), terms.deadline);
}

void RouterClient::Impl::Forget(uint64_t id) {
  const auto it = requests_.find(id);
  if (it->second.router == kNone) {
    waiting_.erase(id);
  } else {
    Peer& peer = peers_[it->second.router];
    --peer.requests;
    if (!peer.named) wake_.SignalAll();
  }
  requests_.erase(it);
}

RouterClient::Impl::Request* RouterClient::Impl::Find(uint64_t id) {
  auto it = requests_.find(id);
  return it == requests_.end() || it->second.listener == nullptr ? nullptr : &it->second;
}

void RouterClient::Impl::Cancel(uint64_t id) {
  std::shared_ptr<TokenListener> released;  // after the lock: its destructor is not ours
  absl::MutexLock lock(&mutex_);
  Request* request = Find(id);
  if (request == nullptr) return;
  released = std::exchange(request->listener, nullptr);
  if (request->router == kNone) return Forget(id);
  // Kept until its last event: it is load at that router.
  pb::ToRouter message;
  message.mutable_cancel()->set_request(id);
  // Beyond the bound of the queue, but at most one a request and choice. A stream that has just
  // ended needs none.
  peers_[request->router]
      .stream->Send(std::move(message), RouterStream::Bound::kNone)
      .IgnoreError();
}

void RouterClient::Impl::CancelChoice(uint64_t id, int choice) {
  {
    absl::MutexLock lock(&mutex_);
    Request* request = Find(id);
    if (request == nullptr || request->open.count(choice) == 0) return;
    if (request->open.size() > 1) {
      request->open.erase(choice);
      if (request->router == kNone) return;
      pb::ToRouter message;
      message.mutable_cancel()->set_request(id);
      message.mutable_cancel()->set_choice(choice);
      peers_[request->router]
          .stream->Send(std::move(message), RouterStream::Bound::kNone)
          .IgnoreError();
      return;
    }
  }
  Cancel(id);
}

std::string RouterClient::Impl::Missing() const {
  std::vector<std::string> lines;
  for (const Peer& peer : peers_) {
    if (!peer.left()) lines.push_back(fmt::format("router {}: {}", peer.address, peer.state));
  }
  if (lines.empty()) return "no router's address is known yet";
  return absl::StrJoin(lines, "; ");
}

absl::Status RouterClient::Impl::NoneFor(const Request& request) const {
  if (stopping_) return Unavailable("the gateway is shutting down");
  std::vector<std::string> lines;
  for (const Peer& peer : peers_) {
    if (!peer.ready || Suits(peer, request)) continue;
    lines.push_back(fmt::format("router {}: model {}, numerics id {}, up to {} tokens",
                                peer.address, peer.info.model_fingerprint, peer.info.numerics_id,
                                peer.info.max_model_len));
  }
  if (lines.empty()) return Unavailable("no router is ready: {}", Missing());
  const Numerics& like = request.terms.like;
  return Unavailable(
      "no router may go on with what one of model {}, numerics id {} began: {} "
      "(--allow-mixed-numerics allows another numerics id)",
      like.model_fingerprint, like.numerics_id, absl::StrJoin(lines, "; "));
}

RoutersState RouterClient::Impl::state() const {
  absl::MutexLock lock(&mutex_);
  RoutersState out;
  for (const Peer& peer : peers_) {
    if (peer.left()) continue;
    out.ready |= peer.ready;
    out.routers.push_back({.address = peer.address,
                           .ready = peer.ready,
                           .state = peer.state,
                           .requests = peer.requests});
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
    std::vector<v1::RouterExperts> answers;
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

void RouterClient::Follow(const std::vector<std::string>& addresses) { impl_->Follow(addresses); }

absl::StatusOr<uint64_t> RouterClient::Submit(pb::Submit submit,
                                              std::shared_ptr<TokenListener> listener,
                                              SubmitTerms terms) {
  return impl_->Submit(std::move(submit), std::move(listener), std::move(terms));
}

void RouterClient::Cancel(uint64_t request) { impl_->Cancel(request); }

void RouterClient::CancelChoice(uint64_t request, int choice) {
  impl_->CancelChoice(request, choice);
}

RoutersState RouterClient::state() const { return impl_->state(); }

std::optional<ModelInfo> RouterClient::model() const { return impl_->model(); }

void RouterClient::DescribeExperts(absl::Duration timeout, ExpertsCallback done) const {
  impl_->DescribeExperts(timeout, std::move(done));
}

}  // namespace switchyard::gateway
