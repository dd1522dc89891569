#include "services/discovery/kept_lease.h"

#include <algorithm>
#include <utility>

#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::discovery {
namespace {

constexpr absl::Duration kRetry = absl::Milliseconds(500);
constexpr absl::Duration kFarewell = absl::Seconds(1);  // at most, in all

void GiveBack(EtcdClient& client, int64_t lease, Stopper& stopper) {
  etcd::LeaseRevokeRequest request;
  request.set_id(lease);
  if (const auto done = client.Revoke(request, stopper); !done.ok()) {
    log::Debug("etcd: lease {:x} runs out by itself: {}", lease, ToStd(done.status().message()));
  }
}

}  // namespace

KeptLease::KeptLease(std::shared_ptr<EtcdClient> client, absl::Duration ttl, Granted granted)
    : client_(std::move(client)),
      ttl_(std::max(ttl, absl::Seconds(1))),
      granted_(std::move(granted)) {
  thread_ = std::thread([this] { Run(); });
}

KeptLease::~KeptLease() {
  stopper_.Stop();
  thread_.join();
  const int64_t lease = granted_id_;
  if (lease == 0) return;
  Stopper farewell;
  std::thread bound([&] {
    if (farewell.Pause(kFarewell)) farewell.Stop();
  });
  GiveBack(*client_, lease, farewell);
  farewell.Wake();
  bound.join();
}

int64_t KeptLease::id() const {
  absl::MutexLock lock(&mutex_);
  return Clock::now() < until_ ? id_ : 0;
}

void KeptLease::Set(int64_t id, Clock::time_point until) {
  absl::MutexLock lock(&mutex_);
  id_ = id;
  until_ = until;
}

void KeptLease::Run() {
  do {
    if (absl::Status status = Grant(); status.ok()) {
      Keep();
    } else if (!stopper_.stopped()) {
      log::Debug("{}", ToStd(status.message()));
    }
  } while (stopper_.Pause(kRetry));
}

absl::Status KeptLease::Grant() {
  etcd::LeaseGrantRequest request;
  request.set_ttl(absl::ToInt64Seconds(ttl_));
  const Clock::time_point asked = Clock::now();
  SY_ASSIGN_OR_RETURN(const etcd::LeaseGrantResponse response, client_->Grant(request, stopper_));
  if (!response.error().empty()) return Unavailable("etcd: no lease: {}", response.error());
  granted_id_ = response.id();
  granted_ttl_ = absl::Seconds(response.ttl());
  if (absl::Status written = granted_(response.id(), stopper_); !written.ok()) {
    if (!stopper_.stopped()) log::Warning("{}", ToStd(written.message()));
    GiveBack(*client_, response.id(), stopper_);
    return written;
  }
  Set(response.id(), asked + absl::ToChronoMilliseconds(granted_ttl_));
  return absl::OkStatus();
}

void KeptLease::Keep() {
  absl::Duration pause = granted_ttl_ / 3;
  while (stopper_.Pause(pause)) {
    const int64_t lease = id();
    if (lease == 0) {
      log::Warning("etcd was away for longer than the lease lasts ({})",
                   absl::FormatDuration(granted_ttl_));
      return;
    }
    const Clock::time_point asked = Clock::now();
    const auto beat = client_->KeepAlive(lease, stopper_);
    if (beat.ok()) {
      Set(lease, asked + std::chrono::seconds(beat->ttl()));
      pause = granted_ttl_ / 3;
      continue;
    }
    if (absl::IsNotFound(beat.status())) {
      log::Warning("{}; registering again", ToStd(beat.status().message()));
      return Set(0, {});
    }
    pause = std::min(granted_ttl_ / 10, kRetry);  // before it runs out
  }
}

}  // namespace switchyard::discovery
