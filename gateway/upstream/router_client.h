// Keeps one Router.Serve stream to each router address, reconnects with bounded backoff, and sends
// each request to the least loaded router that is ready.
//
// Invariants: the events of a request reach its listener in order and one at a time; each choice
// gets exactly one terminal event (a Token with `finish`), or the request gets one OnBroken instead
// of what is missing. Tokens that a lost router goes on sending may still come behind that: they
// carry their attempt. Nothing is retried here: who holds the request decides.
//
// Where no router takes requests, they wait for one, for router_wait since the last one went.
//
// Bounded: at most max_queued_writes messages wait for a router that does not read, and as many new
// requests for a router; one more Submit is refused with RESOURCE_EXHAUSTED.
//
// Thread-safety: all methods of RouterClient may be called by any thread, also from a listener.
// Listeners are called on gRPC's threads and on one of the client's, without a lock held, and must
// only enqueue.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "switchyard/internal/v1/router.pb.h"

namespace grpc {
class Channel;
}

namespace switchyard::gateway {

// What the tokens of a router depend on. Empty: anything.
struct Numerics {
  std::string model_fingerprint, numerics_id;
};

// A request has lost its router, or found none.
struct Loss {
  enum class Reason {
    kBroken,   // the stream died
    kEnded,    // the router ended it, as it does at the end of its drain
    kSilent,   // nothing was heard of the router for router_silence_max
    kNoRouter  // none took the request while it could wait
  };
  absl::Status status;  // UNAVAILABLE, names the router
  Reason reason = Reason::kBroken;
  uint32_t attempt = 0;  // of the request
  Numerics numerics;     // of the lost router
};

class TokenListener {
 public:
  virtual ~TokenListener() = default;
  // index -1: no token, only a finish or prompt fields. finish != NONE ends that choice.
  virtual void OnToken(const internal::v1::Token& token) = 0;
  // It goes on only where it is submitted anew.
  virtual void OnBroken(const Loss& loss) = 0;
};

struct RouterClientOptions {
  std::string gateway_id;
  // What the routers compare with theirs: config.json + tokenizer.json + chat template.
  std::string text_fingerprint;
  std::vector<std::string> addresses;  // HOST:PORT or unix:PATH; see Follow
  size_t max_queued_writes = 4096;     // messages a router
  bool log_states = true;              // of routers; false where they log in this process
  absl::Duration backoff_min = absl::Milliseconds(50);
  absl::Duration backoff_max = absl::Seconds(1);
  // A router that says it sends heartbeats and from which nothing came for so long is lost.
  absl::Duration router_silence_max = absl::InfiniteDuration();
  absl::Duration router_wait = absl::ZeroDuration();
  // Requests that are continued may go to routers of other numerics (of the same model).
  bool allow_mixed_numerics = false;
};

// What the connected routers' hellos say of the model. They are of one model, but may differ in
// what is said so below.
struct ModelInfo {
  std::string model_fingerprint;
  std::string numerics_id;  // each that some router has, joined by ','
  int max_model_len = 0;    // the shortest: any router may get a request
  int vocab = 0;
  std::vector<int32_t> moe_layers;
  int top_k = 0;
};

struct RouterView {
  std::string address;
  bool ready = false;
  // "ready", "connecting: …", "refused: …" (names both sides), "draining", "missing: layer 3: …"
  std::string state;
  int requests = 0;  // in flight from this gateway
};

struct RoutersState {
  bool ready = false;   // some router takes requests
  std::string missing;  // why not, one line; empty if ready
  std::vector<RouterView> routers;
};

// Which routers a request may go to, and when.
struct SubmitTerms {
  absl::Time deadline = absl::InfiniteFuture();  // of the request; a router is told what is left
  absl::Time not_before = absl::InfinitePast();
  // Of a request that is continued: waits for router_wait from now on.
  bool continued = false;
  Numerics like;
};

class RouterClient {
 public:
  // Makes the channel of an address; embedded passes an in-process one. Called once an address, and
  // by Follow once each time that one is new. Null: there is none, it is left out.
  using ChannelFactory = std::function<std::shared_ptr<grpc::Channel>(const std::string& address)>;
  // Called on a gRPC thread, without a lock held, after state() or model() has changed.
  using StateCallback = std::function<void()>;

  // Starts connecting at once. `on_state` may be null.
  RouterClient(RouterClientOptions options, const ChannelFactory& channels,
               StateCallback on_state = nullptr);
  ~RouterClient();  // Stop()
  RouterClient(const RouterClient&) = delete;
  RouterClient& operator=(const RouterClient&) = delete;

  // Breaks what is in flight (OnBroken and DescribeExperts' `done` are called), connects no more,
  // and waits until gRPC holds nothing of it. Again is nothing. Not thread-safe against itself.
  void Stop();

  // The routers from now on. One that is not named any more takes no new requests, and its stream
  // ends with its last one. By one thread at a time.
  void Follow(const std::vector<std::string>& addresses);

  // Sends a request, or has it wait, and names it: `submit.request`, which is set here, as is
  // deadline_left_us. UNAVAILABLE says what is missing; RESOURCE_EXHAUSTED if that router does not
  // read. The listener lives until its last event.
  absl::StatusOr<uint64_t> Submit(internal::v1::Submit submit,
                                  std::shared_ptr<TokenListener> listener, SubmitTerms terms = {});
  // The router ends the request within a step. The listener is let go at once: only an event that
  // is just being delivered may still reach it. Unknown or finished requests are ignored.
  void Cancel(uint64_t request);
  // The same for one choice; the others go on, and events of this one no longer come. Of the only
  // choice that runs it is Cancel.
  void CancelChoice(uint64_t request, int choice);

  RoutersState state() const;
  // Of the routers that are connected, or of those that last were; empty before the first hello.
  std::optional<ModelInfo> model() const;

  // Asks every connected router; `done` gets the answers of those that gave one by then.
  using ExpertsCallback = std::function<void(std::vector<v1::RouterExperts>)>;
  void DescribeExperts(absl::Duration timeout, ExpertsCallback done) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard::gateway
