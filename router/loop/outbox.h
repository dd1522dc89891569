// The events of a step on their way to the sinks: all of one sink go in one OnStep. A sink that was
// silenced gets nothing any more, from the moment that Silence returns.
//
// Thread-safety: Silence may be called by any thread; the rest is the engine thread's.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "router/loop/request.h"

namespace switchyard::router {

class Outbox {
 public:
  void Add(const std::shared_ptr<TokenSink>& sink, TokenEvent event);
  void Flush(uint64_t step);

  void Silence(const TokenSink* sink);
  // Once for each Silence, when no request of the sink is left: drops its events, and the address
  // may be another sink's.
  void Forget(const TokenSink* sink);

 private:
  struct Pending {
    std::shared_ptr<TokenSink> sink;
    std::vector<TokenEvent> events;
  };
  std::vector<Pending> pending_;  // in order of their first event

  absl::Mutex mutex_;  // held during OnStep
  absl::flat_hash_map<const TokenSink*, int> silenced_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace switchyard::router
