// Who of several does what only one may do: whoever holds PREFIX/NAME, a key on its own lease. It
// is a candidate from its construction to its end.
//
// Being the leader is a guess as old as the last word of etcd's: another may have taken over since.
// So a leader writes through Fence, and etcd itself refuses what comes too late.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "services/discovery/kept_lease.h"
#include "services/discovery/key_watch.h"

namespace switchyard::discovery {

struct ElectionOptions {
  std::string name = "leader";
  std::string candidate;                  // who we are, for people and logs; unique
  absl::Duration ttl = absl::Seconds(5);  // a dead leader is replaced that much later
};

// Thread-safe.
class Election {
 public:
  Election(std::shared_ptr<EtcdClient> client, ElectionOptions options);
  ~Election();  // resigns: another takes over at once

  bool leader() const { return term() != 0; }
  // The revision that made us the leader, as long as we are; else 0. Terms grow, whoever leads.
  int64_t term() const;
  // Adds to a transaction that we must be the leader still. FAILED_PRECONDITION if we know that we
  // are not.
  absl::Status Fence(etcd::TxnRequest* txn) const;

 private:
  void Run();
  absl::Status Campaign(int64_t lease);

  const std::shared_ptr<EtcdClient> client_;
  const ElectionOptions options_;
  const std::string key_;
  Stopper stopper_;

  mutable absl::Mutex mutex_;
  bool known_ ABSL_GUARDED_BY(mutex_) = false;  // whether there is a holder
  etcd::KeyValue holder_ ABSL_GUARDED_BY(mutex_);
  KeptLease lease_;
  KeyWatch holders_;
  std::thread thread_;
};

}  // namespace switchyard::discovery
