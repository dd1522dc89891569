// The worker's end of the gRPC wire: the Dispatch stream of every router on one completion queue,
// driven by one thread that also computes. What arrives while it computes is merged into the next
// computation. A second thread wakes every 50 ms to keep streams alive and to say "computing".
//
// A router that stops reading costs its own credits and nothing else: answers that it has no room
// for are answered OVERLOADED without rows. Streams without a hello are ended soon. Beyond
// max_routers of them and of lone bulk lanes the oldest goes first, so that they keep no router
// out. A bulk lane is lone while its router has no first lane here that goes with it; it may come
// first.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "absl/time/time.h"
#include "services/expertwire/expert_link.h"
#include "services/expertwire/handshake.h"
#include "services/expertwire/row_buffer.h"

namespace grpc {
class ServerBuilder;
}

namespace switchyard::expertwire {

struct GrpcServerOptions {
  CreditGrant grant;                  // to each router
  int max_routers = 64;               // more are refused
  bool shared_memory = true;          // is offered to routers of this host
  std::shared_ptr<BlockSource> rows;  // where frames that come are put; null: the heap
  size_t max_frame_bytes = 64u << 20;
  // A stream whose hello has not come by then is ended; so is, after `end_patience`, one whose peer
  // does not end it once it was refused, or does not read how it ended.
  absl::Duration hello_timeout = absl::Seconds(5);
  absl::Duration end_patience = absl::Seconds(1);
  absl::Duration busy_poll = absl::Milliseconds(1);  // polls for so long after work, then sleeps
};

struct GrpcServerStats {
  uint64_t routers = 0;          // connected, now
  uint64_t streams_broken = 0;   // by undecodable frames or overdrawn credits
  uint64_t refused = 0;          // hellos
  uint64_t unknown_cancels = 0;  // of calls that are not open
  // Streams that ended with an error of the router's or for want of room, by absl::StatusCode.
  std::array<uint64_t, 17> ended_by_code{};
};

// Thread-safe.
class GrpcServer {
 public:
  // `handler` outlives it.
  GrpcServer(CallHandler& handler, const GrpcServerOptions& options);
  ~GrpcServer();  // Stop

  // Adds the services and the queue to a server that is being built; once.
  void Register(grpc::ServerBuilder& builder);
  // Once the server is built. Not called if it could not be.
  void Start();
  // Tells every router to send no more; hellos from now on are refused.
  void BeginDrain();
  // Whether no call is open and everything is written.
  bool Idle() const;
  // Ends the threads. The server must have been told to shut down before, and is waited for with
  // them still running.
  void Stop();
  GrpcServerStats stats() const;

 private:
  struct Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard::expertwire
