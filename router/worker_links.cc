#include "router/worker_links.h"

#include <algorithm>
#include <utility>

#include "services/base/clock.h"
#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::router {
namespace {

using discovery::Address;

// How often what could not be done yet is tried again.
constexpr absl::Duration kLookEvery = absl::Milliseconds(250);

}  // namespace

WorkerLinks::WorkerLinks(const WorkerLinksOptions& options, expertwire::LinkSet& links)
    : etcd_(options.etcd), links_(links), link_{.shared_memory = options.shared_memory} {}

absl::StatusOr<std::unique_ptr<WorkerLinks>> WorkerLinks::Create(const WorkerLinksOptions& options,
                                                                 expertwire::LinkSet& links) {
  auto out = std::unique_ptr<WorkerLinks>(new WorkerLinks(options, links));
  SY_ASSIGN_OR_RETURN(out->credentials_, security::ClientCredentials(options.tls));
  out->names_ = std::make_unique<discovery::AddressWatch>(
      discovery::AddressWatchOptions{.addresses = options.addresses,
                                     .refresh = options.dns_refresh,
                                     .resolver = options.resolver},
      [self = out.get()](const std::vector<Address>& now) { self->OnNames(now); });
  {
    // Unless the watch was faster.
    absl::MutexLock lock(&out->mutex_);
    if (out->named_.empty()) out->named_ = out->names_->addresses();
    out->Reconcile();
  }
  if (options.etcd != nullptr) {
    out->announced_ = std::make_unique<discovery::MemberWatch>(
        options.etcd, [self = out.get()](const std::vector<discovery::Member>& members) {
          self->OnMembers(members);
        });
  }
  return out;
}

void WorkerLinks::OnNames(const std::vector<Address>& addresses) {
  absl::MutexLock lock(&mutex_);
  named_ = addresses;
  Reconcile();
}

void WorkerLinks::OnMembers(const std::vector<discovery::Member>& members) {
  absl::MutexLock lock(&mutex_);
  members_.clear();
  for (const discovery::Member& member : members) members_.push_back({.target = member.address});
  Reconcile();
}

void WorkerLinks::Look() {
  absl::MutexLock lock(&mutex_);
  if (!pending_ || SteadyNow() < next_look_) return;
  Reconcile();
}

bool WorkerLinks::Stands(const std::string& target, bool member) const {
  using expertwire::LinkState;
  const auto links = links_.links();
  return std::any_of(links.begin(), links.end(), [&](const auto& link) {
    const LinkState state = link->state();
    const bool serves = state == LinkState::kDraining || (member && state == LinkState::kUp);
    return serves && link->name() == target;
  });
}

void WorkerLinks::Reconcile() {
  pending_ = false;
  std::map<std::string, bool> wanted;
  const auto want = [&](const Address& address, bool member) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!wanted.emplace(address.target, member).second) return;
    if (const auto it = linked_.find(address.target); it != linked_.end()) {
      it->second = member;
      return;
    }
    expertwire::GrpcLinkOptions link = link_;
    link.target = address.target;
    link.tls_name = address.tls_name;
    if (address.target.rfind("unix:", 0) != 0) link.credentials = credentials_;
    if (links_.AddGrpc(link)) {
      linked_[address.target] = member;
      full_ = false;
    } else {
      pending_ = true;
      if (!std::exchange(full_, true)) {
        log::Error("worker {}: no room for more than {} links", address.target,
                   expertwire::LinkSet::kLinksMax);
      }
    }
  };
  for (const Address& address : named_) want(address, false);
  for (const Address& address : members_) want(address, true);
  for (auto it = linked_.begin(); it != linked_.end();) {
    const auto& [target, member] = *it;
    if (wanted.contains(target) || Stands(target, member)) {
      pending_ = pending_ || !wanted.contains(target);
      ++it;
      continue;
    }
    log::Info("worker {}: {}", target,
              member ? "no longer announced, nor reached" : "its name has lost this address");
    links_.Remove(target);
    it = linked_.erase(it);
  }
  next_look_ = SteadyNow() + kLookEvery;
}

void WorkerLinks::CollectTo(telemetry::Samples& samples) const {
  {
    absl::MutexLock lock(&mutex_);
    samples.Gauge(telemetry::kRouterKnownWorkers, static_cast<double>(linked_.size()));
  }
  samples.Counter(telemetry::kDnsFailures, static_cast<double>(names_->failures()));
  if (etcd_ != nullptr) etcd_->CollectTo(samples);
}

}  // namespace switchyard::router
