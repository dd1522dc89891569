#include "services/discovery/document_watch.h"

#include <utility>

#include "services/base/clock.h"
#include "services/base/status.h"

namespace switchyard::discovery {

DocumentWatch::DocumentWatch(const std::shared_ptr<EtcdClient>& client, const std::string& name,
                             TakeDocument take)
    : client_(client),
      taker_("etcd: " + client->Key(name), std::move(take)),
      key_(client, client->Key(name), "", [this](const KeyWatch::Keys& keys) {
        const int64_t revision = keys.empty() ? 0 : keys.begin()->second.mod_revision();
        if (keys.empty()) {
          taker_.Fail(NotFound("there is no such key"));
        } else {
          taker_.Offer(keys.begin()->second.value());
        }
        absl::MutexLock lock(&mutex_);
        revision_ = revision;
      }) {}

SourceHealth DocumentWatch::health() const {
  SourceHealth health = taker_.health();
  const EtcdHealth etcd = client_->health();
  health.contact = SteadyNow() - etcd.silent_for;
  if (health.status.ok()) health.status = etcd.status;
  return health;
}

int64_t DocumentWatch::revision() const {
  absl::MutexLock lock(&mutex_);
  return revision_;
}

absl::StatusOr<int64_t> PutDocument(EtcdClient& client, const std::string& name,
                                    const std::string& text, int64_t revision,
                                    const Election* leader, Stopper& stopper) {
  etcd::TxnRequest txn;
  etcd::Compare* compare = txn.add_compare();
  compare->set_key(client.Key(name));
  compare->set_target(etcd::Compare::MOD);
  compare->set_result(etcd::Compare::EQUAL);
  compare->set_mod_revision(revision);
  if (leader != nullptr) SY_RETURN_IF_ERROR(leader->Fence(&txn));
  etcd::PutRequest* put = txn.add_success()->mutable_request_put();
  put->set_key(client.Key(name));
  put->set_value(text);
  SY_ASSIGN_OR_RETURN(const etcd::TxnResponse response, client.Txn(txn, stopper));
  if (!response.succeeded()) {
    return absl::AbortedError(fmt::format("{} was changed by another since revision {}{}",
                                          client.Key(name), revision,
                                          leader == nullptr ? "" : ", or another leads now"));
  }
  return response.header().revision();
}

}  // namespace switchyard::discovery
