// Keeps a router's links in step with its workers: those that were given, the addresses of those
// given by name, and those that are announced in etcd.
//
// An address that its name has lost is left: its link takes no new calls, and finishes what is
// open. A worker that is gone from etcd is left once its link is down as well: a stream that stands
// knows better than a lease that has run out. So is one that drains, whatever has forgotten it:
// it is asked for what nobody else holds for as long as it answers.
//
// Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "services/discovery/address_watch.h"
#include "services/discovery/membership.h"
#include "services/expertwire/link_set.h"
#include "services/security/tls.h"
#include "services/telemetry/metrics.h"

namespace switchyard::router {

struct WorkerLinksOptions {
  std::vector<std::string> addresses;  // that config::CheckPeerAddress accepts, none twice
  absl::Duration dns_refresh = absl::Seconds(5);
  discovery::Resolver resolver = discovery::SystemResolver;
  std::shared_ptr<discovery::EtcdClient> etcd;  // null: nobody is announced
  security::TlsFiles tls;                       // towards the workers
  bool shared_memory = true;
};

class WorkerLinks {
 public:
  // Adds the links that are known at once, in the order given, and follows from then on. `links`
  // outlives it.
  static absl::StatusOr<std::unique_ptr<WorkerLinks>> Create(const WorkerLinksOptions& options,
                                                             expertwire::LinkSet& links);

  // To be called now and then: leaves links that were waited for.
  void Look();
  void CollectTo(telemetry::Samples& samples) const;

 private:
  WorkerLinks(const WorkerLinksOptions& options, expertwire::LinkSet& links);
  void OnNames(const std::vector<discovery::Address>& addresses);
  void OnMembers(const std::vector<discovery::Member>& members);
  // Adds what is wanted, and leaves what is not.
  void Reconcile() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether a worker that is wanted no more serves on; `member` as in linked_.
  bool Stands(const std::string& target, bool member) const;

  const std::shared_ptr<discovery::EtcdClient> etcd_;  // null: none
  expertwire::LinkSet& links_;
  expertwire::GrpcLinkOptions link_;                       // of all, but for the target
  std::shared_ptr<grpc::ChannelCredentials> credentials_;  // not for unix:

  mutable absl::Mutex mutex_;
  std::vector<discovery::Address> named_ ABSL_GUARDED_BY(mutex_);
  std::vector<discovery::Address> members_ ABSL_GUARDED_BY(mutex_);
  // Targets with a link, and whether it was a member when it was last wanted.
  std::map<std::string, bool> linked_ ABSL_GUARDED_BY(mutex_);
  // Whether a link is wanted or left that could not be added or left yet.
  bool pending_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time next_look_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  bool full_ ABSL_GUARDED_BY(mutex_) = false;  // and said so

  // Last: their threads end first.
  std::unique_ptr<discovery::AddressWatch> names_;
  std::unique_ptr<discovery::MemberWatch> announced_;
};

}  // namespace switchyard::router
