#include "expert-worker/store/loader.h"

#include <algorithm>
#include <new>
#include <optional>

#include "absl/time/time.h"
#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::worker {
namespace {

// How soon experts that calls name are looked at again.
constexpr absl::Duration kAgain = absl::Milliseconds(20);
constexpr double kMostPause_s = 3600;  // of a tensor

}  // namespace

Loader::Loader(ExpertStore& store, Holdings& holdings, Tiers& tiers, LoaderOptions options)
    : store_(store),
      holdings_(holdings),
      tiers_(tiers),
      options_(std::move(options)),
      thread_([this] { Run(); }) {}

Loader::~Loader() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.SignalAll();
  }
  thread_.join();
}

void Loader::Wake() {
  absl::MutexLock lock(&mutex_);
  woken_ = true;
  changed_.SignalAll();
}

void Loader::OnLost(ExpertId id, const absl::Status& why) {
  if (!holdings_.OnLost(id, std::string(why.message()))) return;  // known
  log::Error("expert {} of layer {} is lost: {}", id.expert, id.layer, ToStd(why.message()));
  failed_.fetch_add(1, std::memory_order_relaxed);
  absl::MutexLock lock(&mutex_);
  lost_.push_back(id);
  woken_ = true;
  changed_.SignalAll();
}

void Loader::Run() {
  bool some_stay = false;
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      const auto due = [this] {
        mutex_.AssertHeld();
        return woken_ || stopping_;
      };
      changed_.Await(&mutex_, some_stay ? kAgain : absl::InfiniteDuration(), due);
      if (stopping_) return;
      woken_ = false;
    }
    do {
      TakeLost();
      some_stay = Remove();
      const std::optional<Holdings::Next> next = holdings_.NextToLoad();
      if (!next) break;
      Load(*next);
    } while (!stopping());
  }
}

void Loader::TakeLost() {
  std::vector<ExpertId> lost;
  {
    absl::MutexLock lock(&mutex_);
    lost.swap(lost_);
  }
  for (const ExpertId id : lost) {
    store_.Remove(id);
    tiers_.OnRemoved(id);
    holdings_.OnRemoved(id);
  }
}

bool Loader::Remove() {
  std::vector<ExpertId> ids = holdings_.MayGo();
  const size_t all = ids.size();
  if (all > 0 && options_.spare_named) options_.spare_named(&ids);
  for (const ExpertId id : ids) {
    if (!holdings_.BeginRemoval(id)) continue;
    store_.Remove(id);
    tiers_.OnRemoved(id);
    holdings_.OnRemoved(id);
    removed_.fetch_add(1, std::memory_order_relaxed);
  }
  return ids.size() < all;
}

void Loader::Load(const Holdings::Next& next) {
  const ExpertId id = next.id;
  const auto pace = [&](uint64_t bytes) {
    bytes_.fetch_add(bytes, std::memory_order_relaxed);
    return next.urgent || options_.bytes_per_s == 0 ? !stopping() : Pace(bytes);
  };
  absl::Status status;
  try {
    status = store_.Load(id, {.check_weights = options_.check_weights, .pace = pace});
  } catch (const std::bad_alloc&) {  // somebody else may have the memory for it
    status = ResourceExhausted("no memory is left");
  }
  if (absl::IsCancelled(status)) return;  // the end
  if (!status.ok()) {
    log::Error("cannot load expert {} of layer {}: {}", id.expert, id.layer,
               ToStd(status.message()));
    failed_.fetch_add(1, std::memory_order_relaxed);
    return holdings_.OnFailed(id, std::string(status.message()));
  }
  loaded_.fetch_add(1, std::memory_order_relaxed);
  tiers_.OnLoaded(id);
  holdings_.OnLoaded(id);
}

bool Loader::Pace(uint64_t bytes) {
  const double seconds = static_cast<double>(bytes) / static_cast<double>(options_.bytes_per_s);
  const auto now = std::chrono::steady_clock::now();
  due_ = std::max(due_, now) + std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::duration<double>(std::min(seconds, kMostPause_s)));
  // Holdings changes before it is said to this thread, so that this is looked at again.
  const auto stop_or_hurry = [this] {
    mutex_.AssertHeld();
    return stopping_ || holdings_.UrgentWaits();
  };
  absl::MutexLock lock(&mutex_);
  changed_.Await(&mutex_, absl::FromChrono(due_ - now), stop_or_hurry);
  return !stopping_;
}

LoaderCounters Loader::counters() const {
  const auto read = [](const std::atomic<uint64_t>& a) {
    return a.load(std::memory_order_relaxed);
  };
  return {.loaded = read(loaded_),
          .failed = read(failed_),
          .removed = read(removed_),
          .bytes = read(bytes_)};
}

}  // namespace switchyard::worker
