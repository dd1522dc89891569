// Router.Serve and DescribeExperts over an engine: greets gateways, refuses those of another text,
// and tells all of them when the router becomes ready, loses experts or drains.
//
// Outlives the server it is registered with. Thread-safe.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "router/loop/engine.h"
#include "router/service/gateway_stream.h"
#include "services/base/repeat_filter.h"
#include "switchyard/internal/v1/router.grpc.pb.h"

namespace switchyard::router {

struct RouterServiceOptions {
  internal::v1::RouterHello hello;     // what gateways are told; protocol_version is set here
  size_t max_queued_bytes = 8u << 20;  // that wait for one gateway
  int max_gateways = 256;              // one more is refused
  // A stream whose hello has not come by then is ended; at most max_gateways wait for theirs.
  absl::Duration hello_timeout = absl::Seconds(5);
};

// How often gateways hear of a router that has nothing to say.
inline constexpr absl::Duration kHeartbeat = absl::Milliseconds(200);
// Without any progress of the engine for so long, with work to do, it counts as hung, and gateways
// hear nothing more. A long step is not that: every piece of a product is progress.
inline constexpr absl::Duration kEnginePatience = absl::Seconds(5);

class RouterService : public internal::v1::Router::CallbackService, private GatewayStream::Owner {
 public:
  using Describe = std::function<void(v1::RouterExperts*)>;
  struct Hooks {
    Describe describe;                                    // may be null
    std::function<void(const absl::Status&)> on_refused;  // a request; may be null
    std::function<void()> on_slow;                        // a gateway; may be null
  };

  // `engine` outlives the service.
  RouterService(RouterServiceOptions options, Engine& engine, Hooks hooks);

  // Pushed to all gateways if it is a change. Starts as not ready.
  void SetState(bool ready, const std::string& missing, bool draining);
  // Told to gateways from now on, those that are connected included; part of their fingerprint.
  void SetNumericsId(const std::string& id);
  // Ends the streams whose hello is late, and lets the gateways hear of this router, unless its
  // engine hangs. Called more often than kHeartbeat.
  void Tick(absl::Time now);
  // Ends every stream once what is queued for it is written.
  void EndStreams();
  int streams() const;

  grpc::ServerBidiReactor<internal::v1::ToRouter, internal::v1::FromRouter>* Serve(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* DescribeExperts(grpc::CallbackServerContext* context,
                                            const internal::v1::DescribeExpertsRequest* request,
                                            v1::RouterExperts* response) override;

 private:
  absl::Status OnHello(const internal::v1::GatewayHello& hello, GatewayStream* stream) override;
  void OnRefused(const absl::Status& why) override;
  void OnSlow() override;
  void OnGone(GatewayStream* stream) override;

  const RouterServiceOptions options_;  // its numerics_id: at the start
  Engine& engine_;
  const Hooks hooks_;
  log::RepeatFilter refusals_;

  bool EngineMoves(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  internal::v1::FromRouter HelloMessage() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  std::string numerics_id_ ABSL_GUARDED_BY(mutex_);
  std::map<GatewayStream*, absl::Time> silent_
      ABSL_GUARDED_BY(mutex_);  // until when a hello may come
  // Of the engine, when it was last seen to move.
  uint64_t progress_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time moved_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  bool hangs_ ABSL_GUARDED_BY(mutex_) = false;  // and said so
  absl::Time next_beat_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  internal::v1::RouterState state_ ABSL_GUARDED_BY(mutex_);
  std::set<GatewayStream*> streams_ ABSL_GUARDED_BY(mutex_);  // greeted and not gone
};

}  // namespace switchyard::router
