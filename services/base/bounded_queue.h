// A bounded multi-producer queue between RPC threads and a loop thread. Full is an answer, not a
// wait: TryPush returns false. Close() wakes the consumer and refuses what comes later.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/base/clock.h"

namespace switchyard {

template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // False if the queue is full or closed; `item` is then untouched.
  [[nodiscard]] bool TryPush(T&& item) {
    absl::MutexLock lock(&mutex_);
    if (closed_ || items_.size() >= capacity_) return false;
    items_.push_back(std::move(item));
    filled_.SignalAll();
    return true;
  }

  // All that waits, in order, without blocking.
  std::vector<T> DrainNow() {
    absl::MutexLock lock(&mutex_);
    return TakeAll();
  }

  // As DrainNow, but waits up to `timeout` for a first item or for Close().
  std::vector<T> DrainWait(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    AwaitReady(timeout);
    return TakeAll();
  }

  // The first that waits, for one of several consumers. Waits up to `timeout`; nothing if that
  // passes, or once the queue is closed and empty.
  std::optional<T> PopWait(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    AwaitReady(timeout);
    if (items_.empty()) return std::nullopt;
    std::optional<T> first(std::move(items_.front()));
    items_.pop_front();
    return first;
  }

  void Close() {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    filled_.SignalAll();
  }

  size_t size() const {
    absl::MutexLock lock(&mutex_);
    return items_.size();
  }

 private:
  void AwaitReady(absl::Duration timeout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    filled_.Await(&mutex_, timeout, [this] {
      mutex_.AssertHeld();
      return closed_ || !items_.empty();
    });
  }
  std::vector<T> TakeAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::vector<T> out;
    out.reserve(items_.size());
    for (T& item : items_) out.push_back(std::move(item));
    items_.clear();
    return out;
  }

  const size_t capacity_;
  mutable absl::Mutex mutex_;
  SteadyCondVar filled_;
  std::deque<T> items_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace switchyard
