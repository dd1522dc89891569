// All links of one router, polled and waited on together: one completion queue, driven by the
// engine thread while a step is in flight. A keeper thread looks after hellos, reconnects, progress
// and credits when nobody polls; it never computes.
//
// Waiting climbs a ladder: at most 20 pauses, then sched_yield, then sleep; where runnable threads
// exceed the cores it yields from the first turn.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_set>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/expertwire/expert_link.h"
#include "services/expertwire/handshake.h"
#include "services/expertwire/link_slot.h"

namespace grpc {
class ChannelCredentials;
}

namespace switchyard::expertwire {

class CompletionLoop;
class GrpcLink;

struct GrpcLinkOptions {
  std::string target;                                     // HOST:PORT or unix:PATH
  std::shared_ptr<grpc::ChannelCredentials> credentials;  // null: insecure
  std::string tls_name;  // that the worker's certificate bears; empty: the target's host
  absl::Duration backoff_min = absl::Milliseconds(50);  // between attempts to connect
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
  // One of another kind.
  void Add(std::unique_ptr<ExpertLink> link);

  // ---- any thread, at any time ----
  // Connects: in the place of a link that is gone, or at a new index. One to the same target that
  // is leaving stays instead. False if there is no room.
  bool AddGrpc(const GrpcLinkOptions& options);
  // The link to `target` takes no new calls, and ends once its open ones are answered, at the
  // latest after `patience`. False if there is none.
  bool Remove(std::string_view target, absl::Duration patience = absl::Seconds(30));
  // Ends the streams to a worker that drains, so that it knows that this router can do without it.
  // Does nothing while a call is open. The link connects again when the worker is back.
  void LetGo(std::string_view target);
  // Whoever was once there stays, at the same index: removed ones are kGone. It only grows.
  std::span<const std::unique_ptr<ExpertLink>> links() const {
    return {links_.data(), count_.load(std::memory_order_acquire)};
  }
  static constexpr size_t kLinksMax = 1024;

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
  bool Append(std::unique_ptr<ExpertLink> link);
  void Keep(const std::stop_token& stop);
  // With the loop's mutex held.
  void Tick();
  bool AnyEvents() const;
  LinkSlot* Find(std::string_view target) const;

  const LinkSetOptions options_;
  RowBufferPool pool_;
  const std::unique_ptr<CompletionLoop> loop_;
  std::array<std::unique_ptr<ExpertLink>, kLinksMax> links_;  // the first count_, for good
  std::atomic<size_t> count_ = 0;
  std::atomic<bool> remote_ = false;  // any link but local ones was ever added
  absl::Mutex adding_;                // held by who adds; before the loop's mutex
  // Of all links that ever were, so that a name outlives its link.
  std::unordered_set<std::string> names_ ABSL_GUARDED_BY(adding_);
  std::vector<LinkSlot*> slots_;        // under the loop's mutex
  std::vector<LinkSlot::Tenant> gone_;  // under the loop's mutex; for the keeper to destroy
  absl::Time next_tick_ = absl::InfinitePast();  // under the loop's mutex
  std::vector<LinkEvent> scratch_;
  std::atomic<bool> crowded_ = false;
  std::jthread keeper_;
};

}  // namespace switchyard::expertwire
