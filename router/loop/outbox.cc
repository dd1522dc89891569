#include "router/loop/outbox.h"

#include <algorithm>

namespace switchyard::router {

void Outbox::Add(const std::shared_ptr<TokenSink>& sink, TokenEvent event) {
  auto at = std::find_if(pending_.begin(), pending_.end(),
                         [&](const Pending& p) { return p.sink == sink; });
  if (at == pending_.end()) at = pending_.insert(at, {.sink = sink});
  at->events.push_back(std::move(event));
}

void Outbox::Flush(uint64_t step) {
  for (Pending& pending : pending_) {
    absl::MutexLock lock(&mutex_);
    if (!silenced_.contains(pending.sink.get())) {
      pending.sink->OnStep(step, std::move(pending.events));
    }
  }
  pending_.clear();
}

void Outbox::Silence(const TokenSink* sink) {
  absl::MutexLock lock(&mutex_);
  ++silenced_[sink];
}

void Outbox::Forget(const TokenSink* sink) {
  std::erase_if(pending_, [&](const Pending& p) { return p.sink.get() == sink; });
  absl::MutexLock lock(&mutex_);
  const auto at = silenced_.find(sink);
  if (at != silenced_.end() && --at->second == 0) silenced_.erase(at);
}

}  // namespace switchyard::router
