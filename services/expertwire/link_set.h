// All links of one router, polled and waited on together: one completion queue, driven by the
// engine thread while a step is in flight. A keeper thread looks after hellos, reconnects, progress
// and credits when nobody polls; it never computes.
//
// Waiting climbs a ladder: at most 20 pauses, then sched_yield, then sleep; where runnable threads
// exceed the cores it yields from the first turn.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "services/expertwire/expert_link.h"
#include "services/expertwire/handshake.h"

namespace grpc {
class ChannelCredentials;
}

namespace switchyard::expertwire {

class CompletionLoop;
class GrpcLink;

struct GrpcLinkOptions {
  std::string target;                                     // HOST:PORT or unix:PATH
  std::shared_ptr<grpc::ChannelCredentials> credentials;  // null: insecure
  absl::Duration backoff_min = absl::Milliseconds(50);    // between attempts to connect
  absl::Duration backoff_max = absl::Seconds(1);
  absl::Duration connect_timeout = absl::Seconds(2);  // of one attempt, hello included
  // Without any frame for so long while calls are open the worker is suspect, and given up.
  absl::Duration suspect_after = absl::Milliseconds(150);
  absl::Duration stalled_after = absl::Seconds(10);
  size_t max_frame_bytes = 64u << 20;
  bool shared_memory = true;  // carries the frames where the worker runs on this host and offers it
  int lanes = 2;              // or 1: two_lanes.h
  int socket_buffer_bytes = 0;  // HTTP/2 window of a stream; 0: gRPC's choice (tests make it tiny)
};

struct LinkSetOptions {
  pb::Hello hello;                                   // the router's, by MakeHello
  absl::Duration yield_for = absl::Milliseconds(2);  // then sleep
};

class LinkSet {
 public:
  explicit LinkSet(LinkSetOptions options);
  // Ends all streams; calls that are open are lost.
  ~LinkSet();

  // Before the first Poll, in order of preference. A local worker outlives the set.
  void AddLocal(std::string name, CallHandler& worker);
  void AddGrpc(const GrpcLinkOptions& options);

  const std::vector<std::unique_ptr<ExpertLink>>& links() const { return links_; }

  // ---- the engine thread ----
  struct Event {
    int link = 0;  // index into links()
    LinkEvent event;
  };
  // Appends what came; with local workers, computes.
  bool Poll(std::vector<Event>* events);
  // Returns when Poll may have something, at the latest at `until`.
  void Wait(absl::Time until);

 private:
  std::unique_ptr<GrpcLink> MakeLane(const GrpcLinkOptions& options, int lane);
  void Keep(const std::stop_token& stop);
  void Tick();  // with the loop's mutex held
  bool AnyEvents() const;

  const LinkSetOptions options_;
  RowBufferPool pool_;
  std::unique_ptr<CompletionLoop> loop_;
  std::vector<std::unique_ptr<ExpertLink>> links_;
  std::vector<GrpcLink*> grpc_links_;
  std::vector<LinkEvent> scratch_;
  std::atomic<bool> crowded_ = false;
  std::jthread keeper_;
};

}  // namespace switchyard::expertwire
