#include "router/loop/engine.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <compare>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/cord.h"
#include "absl/synchronization/mutex.h"
#include "router/loop/outbox.h"
#include "router/loop/request_check.h"
#include "router/loop/step_loop.h"
#include "services/base/check.h"
#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::router {
namespace {

constexpr absl::Duration kWaitBound = absl::Milliseconds(5);  // until commands are looked at
constexpr char kRetryAfterUrl[] = "switchyard/retry-after-ms";
constexpr char kElsewhereUrl[] = "switchyard/elsewhere";

}  // namespace

absl::Status EngineOptions::Validate() const {
  const auto positive = [](const char* field, int64_t value) {
    return value > 0 ? absl::OkStatus()
                     : InvalidArgument("{} is {}; it must be above 0", field, value);
  };
  SY_RETURN_IF_ERROR(positive("max_model_len", max_model_len));
  SY_RETURN_IF_ERROR(positive("kv_blocks", kv_blocks));
  SY_RETURN_IF_ERROR(positive("max_batch_tokens", max_batch_tokens));
  SY_RETURN_IF_ERROR(positive("max_running", max_running));
  SY_RETURN_IF_ERROR(positive("max_queue", max_queue));
  if (max_drafts < 0 || (max_drafts > 0 && !make_drafter)) {
    return InvalidArgument("max_drafts is {}; it must be 0, or above with a make_drafter",
                           max_drafts);
  }
  return positive("max_logit_rows", max_logit_rows);
}

int RetryAfterMs(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryAfterUrl);
  if (!payload) return 0;
  const std::string text(*payload);
  int ms = 0;
  std::from_chars(text.data(), text.data() + text.size(), ms);
  return ms;
}

bool IsForElsewhere(const absl::Status& status) {
  return status.GetPayload(kElsewhereUrl).has_value();
}

class Engine::Impl {
 public:
  Impl(EngineOptions options, ModelRunner& runner, EngineObserver* observer)
      : options_(std::move(options)),
        runner_(runner),
        observer_(observer != nullptr ? *observer : silent_),
        loop_(options_, runner, observer_, outbox_) {
    absl::MutexLock lock(&mutex_);
    snapshot_.kv_blocks = options_.kv_blocks;
    thread_ = std::thread([this] { Run(); });
    pthread_setname_np(thread_.native_handle(), "engine");
  }

  ~Impl() {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    thread_.join();
  }

  absl::Status Submit(EngineRequest request);
  void Cancel(const RequestKey& key);
  void CancelChoice(const RequestKey& key, int choice);
  void CancelAll(const TokenSink* sink);
  void BeginDrain(std::function<void()> done);
  EngineSnapshot Snapshot() const;
  EnginePulse Pulse() const {
    return {.asleep = asleep_.load(std::memory_order_relaxed),
            .progress = turns_.load(std::memory_order_relaxed) + runner_.progress()};
  }

 private:
  struct CancelSink {
    const TokenSink* sink;
  };
  struct CancelOne {
    RequestKey request;
    int choice;
  };
  struct Displace {
    RequestKey request;
    absl::Status why;
  };
  using Command = std::variant<EngineRequest, RequestKey, CancelOne, CancelSink, Displace>;
  // Who waits, the first to be displaced in front: the lowest priority, of these the youngest.
  struct Place {
    int priority = 0;
    uint64_t arrival = 0;
    auto operator<=>(const Place& other) const {
      return std::pair(priority, other.arrival) <=> std::pair(other.priority, arrival);
    }
  };
  // What was sent for a request, so that repeated cancels do not fill the queue.
  struct Live {
    bool cancelled = false;
    std::vector<bool> choices;  // cancelled, [n]
    std::string fair_key;
    Place place;
  };

  // ---- the engine thread ----
  void Run();
  // Runs one step to its end.
  void Drive();
  // Takes what arrived, after sleeping until something does where `sleep` says so. False: stopping.
  bool TakeCommands(bool sleep);
  void Publish();

  bool HasMail() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !commands_.empty() || stopping_ || !drained_.empty();
  }
  int RetryAfterMsNow() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The last eighth of the queue is for clients of which nothing waits yet. What another router
  // began was let in there: it finds twice the places.
  int PlacesFor(const EngineRequest& request) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!request.choices.empty()) return 2 * options_.max_queue;
    const bool reserved = !request.fair_key.empty() && waiting_of_.contains(request.fair_key);
    return options_.max_queue - (reserved ? options_.max_queue / 8 : 0);
  }
  absl::Status FullNow(int places, int waiting) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes the place of another in the queue, for a request of that priority. False: none is lower.
  bool DisplaceFor(int priority, const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteStarted(const RequestKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const EngineOptions options_;
  ModelRunner& runner_;
  EngineObserver silent_;  // where there is none
  EngineObserver& observer_;
  Outbox outbox_;
  StepLoop loop_;                // the engine thread's
  uint64_t started_before_ = 0;  // the engine thread's: of the last Publish
  absl::Time last_start_ = SteadyNow();
  // Written by the engine thread.
  std::atomic<bool> asleep_ = false;
  std::atomic<uint64_t> turns_ = 0;  // looks at the commands

  mutable absl::Mutex mutex_;
  std::vector<Command> commands_ ABSL_GUARDED_BY(mutex_);  // at most twice max_queue requests
  int queued_requests_ ABSL_GUARDED_BY(mutex_) = 0;        // of commands_
  absl::flat_hash_map<RequestKey, Live> live_ ABSL_GUARDED_BY(mutex_);  // requests, not ended
  // Requests that wait and may be displaced: nothing of them was begun, here or elsewhere.
  absl::btree_map<Place, RequestKey> places_ ABSL_GUARDED_BY(mutex_);
  uint64_t arrivals_ ABSL_GUARDED_BY(mutex_) = 0;
  int displacing_ ABSL_GUARDED_BY(mutex_) = 0;  // of commands_
  // Requests of each fair key that wait; no zeros.
  absl::flat_hash_map<std::string, int> waiting_of_ ABSL_GUARDED_BY(mutex_);
  EngineSnapshot snapshot_ ABSL_GUARDED_BY(mutex_);
  absl::Duration start_interval_ ABSL_GUARDED_BY(mutex_) = absl::ZeroDuration();  // between starts
  std::vector<std::function<void()>> drained_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

absl::Status Engine::Impl::Submit(EngineRequest request) {
  SY_RETURN_IF_ERROR(CheckRequest(request, options_, runner_.spec()));
  const RequestKey key{request.sink.get(), request.request};
  absl::MutexLock lock(&mutex_);
  if (snapshot_.draining) {
    absl::Status draining = Unavailable("the router is draining and takes no new requests");
    draining.SetPayload(kElsewhereUrl, absl::Cord());
    return draining;
  }
  if (live_.contains(key)) {
    return AlreadyExists("request {} of this stream still runs", request.request);
  }
  const int waiting = queued_requests_ + snapshot_.waiting;
  if (const int places = PlacesFor(request); waiting >= places) {
    absl::Status full = FullNow(places, waiting);
    if (!DisplaceFor(request.priority, full)) return full;
  }
  const Place place{.priority = request.priority, .arrival = arrivals_++};
  live_.emplace(key, Live{.choices = std::vector<bool>(static_cast<size_t>(request.n)),
                          .fair_key = request.fair_key,
                          .place = place});
  if (request.choices.empty()) places_.emplace(place, key);
  ++waiting_of_[request.fair_key];
  ++queued_requests_;
  commands_.emplace_back(std::move(request));
  return absl::OkStatus();
}

absl::Status Engine::Impl::FullNow(int places, int waiting) const {
  const int ms = RetryAfterMsNow();
  absl::Status full =
      ResourceExhausted("the queue is full: it holds {}, waiting requests: {}; try again in {} ms",
                        places, waiting, ms);
  full.SetPayload(kRetryAfterUrl, absl::Cord(std::to_string(ms)));
  return full;
}

// As many wait afterwards as before: who may not have the last eighth gets nothing of it.
bool Engine::Impl::DisplaceFor(int priority, const absl::Status& why) {
  const auto last = places_.begin();
  if (last == places_.end() || last->first.priority >= priority) return false;
  if (displacing_ == options_.max_queue) return false;  // the engine has not come to look yet
  ++displacing_;
  commands_.emplace_back(Displace{last->second, why});
  places_.erase(last);
  return true;
}

// Until a tenth of the queue has started.
int Engine::Impl::RetryAfterMsNow() const {
  const absl::Duration wait = start_interval_ * std::max(1, options_.max_queue / 10);
  return static_cast<int>(std::clamp<int64_t>(absl::ToInt64Milliseconds(wait), 100, 30000));
}

void Engine::Impl::Cancel(const RequestKey& key) {
  absl::MutexLock lock(&mutex_);
  const auto at = live_.find(key);
  if (at == live_.end() || std::exchange(at->second.cancelled, true)) return;
  commands_.emplace_back(key);
}

void Engine::Impl::CancelChoice(const RequestKey& key, int choice) {
  absl::MutexLock lock(&mutex_);
  const auto at = live_.find(key);
  if (at == live_.end() || at->second.cancelled) return;
  std::vector<bool>& choices = at->second.choices;
  if (choice < 0 || choice >= static_cast<int>(choices.size()) || choices[choice]) return;
  choices[choice] = true;
  commands_.emplace_back(CancelOne{key, choice});
}

void Engine::Impl::CancelAll(const TokenSink* sink) {
  outbox_.Silence(sink);
  absl::MutexLock lock(&mutex_);
  commands_.emplace_back(CancelSink{sink});
}

void Engine::Impl::BeginDrain(std::function<void()> done) {
  absl::MutexLock lock(&mutex_);
  snapshot_.draining = true;
  drained_.push_back(std::move(done));
}

EngineSnapshot Engine::Impl::Snapshot() const {
  absl::MutexLock lock(&mutex_);
  EngineSnapshot snapshot = snapshot_;
  snapshot.waiting += queued_requests_;
  return snapshot;
}

void Engine::Impl::Run() {
  while (TakeCommands(loop_.idle())) {
    const absl::Time began = SteadyNow();
    const bool begun = loop_.BeginStep(SteadyNow());
    Publish();
    if (begun) Drive();
    outbox_.Flush(loop_.steps());
    Publish();
    observer_.OnTurn(SteadyNow() - began);
  }
  loop_.CancelEverything();
  outbox_.Flush(loop_.steps());
  Publish();
}

void Engine::Impl::Drive() {
  bool abandoned = false;
  while (loop_.Poll() == ModelRunner::Progress::kWaiting) {
    runner_.Wait(SteadyNow() + kWaitBound);
    if (!TakeCommands(false)) loop_.CancelEverything();
    loop_.Expire(SteadyNow());
    outbox_.Flush(loop_.steps());
    Publish();
    if (loop_.step_is_wasted() && !std::exchange(abandoned, true)) runner_.Abandon();
  }
  loop_.FinishStep(SteadyNow());
}

bool Engine::Impl::TakeCommands(bool sleep) {
  turns_.fetch_add(1, std::memory_order_relaxed);
  std::vector<Command> commands;
  bool stopping;
  {
    absl::MutexLock lock(&mutex_);
    if (sleep) {
      asleep_.store(true, std::memory_order_relaxed);
      mutex_.Await(absl::Condition(this, &Impl::HasMail));
      asleep_.store(false, std::memory_order_relaxed);
    }
    commands.swap(commands_);
    snapshot_.waiting += std::exchange(queued_requests_, 0);  // until Publish counts them
    displacing_ = 0;
    stopping = stopping_;
  }
  const absl::Time now = SteadyNow();
  for (Command& command : commands) {
    if (auto* request = std::get_if<EngineRequest>(&command)) {
      loop_.Add(std::move(*request), now);
    } else if (const auto* key = std::get_if<RequestKey>(&command)) {
      loop_.Cancel(*key);
    } else if (const auto* one = std::get_if<CancelOne>(&command)) {
      loop_.CancelChoice(one->request, one->choice);
    } else if (auto* displace = std::get_if<Displace>(&command)) {
      loop_.Displace(displace->request, displace->why);
    } else {
      const TokenSink* sink = std::get<CancelSink>(command).sink;
      loop_.CancelSink(sink);
      outbox_.Forget(sink);
    }
  }
  return !stopping;
}

void Engine::Impl::NoteStarted(const RequestKey& key) {
  const Live& live = live_.at(key);
  places_.erase(live.place);
  const auto at = waiting_of_.find(live.fair_key);
  if (--at->second == 0) waiting_of_.erase(at);
}

void Engine::Impl::Publish() {
  const absl::Time now = SteadyNow();
  const uint64_t started = loop_.started_requests() - started_before_;
  std::vector<std::function<void()>> drained;
  {
    absl::MutexLock lock(&mutex_);
    for (const RequestKey& key : loop_.TakeStarted()) NoteStarted(key);
    for (const RequestKey& key : loop_.TakeEnded()) live_.erase(key);
    snapshot_.running = loop_.running();
    snapshot_.waiting = loop_.unstarted_requests();
    snapshot_.kv_blocks_used = loop_.pool().used();
    snapshot_.kv_blocks_cached = loop_.pool().findable_free();
    snapshot_.steps = loop_.steps();
    snapshot_.degraded_rows = loop_.degraded_rows();
    snapshot_.degraded_choices = loop_.degraded_choices();
    if (started > 0) {
      const absl::Duration interval = (now - last_start_) / static_cast<int64_t>(started);
      start_interval_ = start_interval_ == absl::ZeroDuration()
                            ? interval
                            : start_interval_ * 0.9 + interval * 0.1;
      last_start_ = now;
      started_before_ += started;
    }
    if (live_.empty()) drained.swap(drained_);
  }
  for (const auto& done : drained) done();
}

Engine::Engine(EngineOptions options, ModelRunner& runner, EngineObserver* observer) {
  SY_CHECK(options.Validate().ok());
  impl_ = std::make_unique<Impl>(std::move(options), runner, observer);
}
Engine::~Engine() = default;

absl::Status Engine::Submit(EngineRequest request) { return impl_->Submit(std::move(request)); }
void Engine::Cancel(const TokenSink* sink, uint64_t request) { impl_->Cancel({sink, request}); }
void Engine::CancelChoice(const TokenSink* sink, uint64_t request, int choice) {
  impl_->CancelChoice({sink, request}, choice);
}
void Engine::CancelAll(const TokenSink* sink) { impl_->CancelAll(sink); }
void Engine::BeginDrain(std::function<void()> done) { impl_->BeginDrain(std::move(done)); }
EngineSnapshot Engine::Snapshot() const { return impl_->Snapshot(); }
EnginePulse Engine::Pulse() const { return impl_->Pulse(); }

}  // namespace switchyard::router
