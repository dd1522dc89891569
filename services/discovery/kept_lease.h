// A lease of etcd, kept alive, and whatever keys live with it. When it is lost (etcd was away for
// longer than it lasts, or has forgotten it) another one is granted and the keys are written anew.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <thread>

#include "services/discovery/etcd_client.h"

namespace switchyard::discovery {

// Thread-safe.
class KeptLease {
 public:
  // Called on the lease's thread with one that was just granted: writes its keys. After an error it
  // is given back, and a new one tried.
  using Granted = std::function<absl::Status(int64_t lease, Stopper& stopper)>;

  // `ttl`: how long the keys stay when we die; etcd has a least one of some two seconds.
  KeptLease(std::shared_ptr<EtcdClient> client, absl::Duration ttl, Granted granted);
  // Gives the lease back, if etcd answers soon: its keys are gone then.
  ~KeptLease();

  // The lease, its keys written, if it is surely still alive by our own clock; else 0.
  int64_t id() const;

 private:
  using Clock = std::chrono::steady_clock;  // a lease does not end by a jump of the wall clock

  void Run();
  absl::Status Grant();
  // Until it is lost.
  void Keep();
  void Set(int64_t id, Clock::time_point until);

  const std::shared_ptr<EtcdClient> client_;
  const absl::Duration ttl_;
  const Granted granted_;
  Stopper stopper_;

  mutable absl::Mutex mutex_;
  int64_t id_ ABSL_GUARDED_BY(mutex_) = 0;
  Clock::time_point until_ ABSL_GUARDED_BY(mutex_);
  // Of the thread: the last lease, whose keys may stand before we know that they do.
  int64_t granted_id_ = 0;
  absl::Duration granted_ttl_;
  std::thread thread_;
};

}  // namespace switchyard::discovery
