#include "services/discovery/election.h"

#include <utility>

#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::discovery {
namespace {

// How soon it is noticed that the lease has run out, which no word from etcd tells.
constexpr absl::Duration kLook = absl::Milliseconds(100);
// After a campaign that failed: news of the winner is on its way, or etcd is away.
constexpr absl::Duration kRetry = absl::Milliseconds(500);

}  // namespace

Election::Election(std::shared_ptr<EtcdClient> client, ElectionOptions options)
    : client_(std::move(client)),
      options_(std::move(options)),
      key_(client_->Key(options_.name)),
      lease_(client_, options_.ttl,
             [this](int64_t, Stopper&) {
               stopper_.Wake();
               return absl::OkStatus();
             }),
      holders_(client_, key_, "", [this](const KeyWatch::Keys& keys) {
        {
          absl::MutexLock lock(&mutex_);
          known_ = true;
          holder_ = keys.empty() ? etcd::KeyValue() : keys.begin()->second;
        }
        stopper_.Wake();
      }) {
  thread_ = std::thread([this] { Run(); });
}

Election::~Election() {
  stopper_.Stop();
  thread_.join();
}

int64_t Election::term() const {
  const int64_t lease = lease_.id();
  absl::MutexLock lock(&mutex_);
  return lease != 0 && holder_.lease() == lease ? holder_.create_revision() : 0;
}

absl::Status Election::Fence(etcd::TxnRequest* txn) const {
  const int64_t term = this->term();
  if (term == 0) return FailedPrecondition("{} is not the leader", options_.candidate);
  etcd::Compare* compare = txn->add_compare();
  compare->set_key(key_);
  compare->set_target(etcd::Compare::CREATE);
  compare->set_result(etcd::Compare::EQUAL);
  compare->set_create_revision(term);
  return absl::OkStatus();
}

// Creates the key, if there is none.
absl::Status Election::Campaign(int64_t lease) {
  etcd::TxnRequest txn;
  etcd::Compare* compare = txn.add_compare();
  compare->set_key(key_);
  compare->set_target(etcd::Compare::CREATE);
  compare->set_result(etcd::Compare::EQUAL);
  compare->set_create_revision(0);
  etcd::PutRequest* put = txn.add_success()->mutable_request_put();
  put->set_key(key_);
  put->set_value(options_.candidate);
  put->set_lease(lease);
  return client_->Txn(txn, stopper_).status();
}

void Election::Run() {
  bool led = false;
  do {
    const bool leads = leader();
    if (leads != std::exchange(led, leads)) {
      log::Info("{} {} the leader ({})", options_.candidate, leads ? "is" : "is no longer", key_);
    }
    const int64_t lease = lease_.id();
    bool open = false;
    {
      absl::MutexLock lock(&mutex_);
      open = known_ && holder_.key().empty();
    }
    if (!open || lease == 0) continue;
    // The watch tells who has won.
    if (const absl::Status status = Campaign(lease); !status.ok() || !stopper_.Pause(kRetry)) {
      if (!stopper_.stopped()) log::Debug("{}", ToStd(status.message()));
    }
  } while (stopper_.Pause(kLook));
}

}  // namespace switchyard::discovery
