// A worker's entry in etcd, where routers find it: nothing without --etcd.
//
// Of the thread that runs the program.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "expert-worker/worker.h"
#include "services/discovery/membership.h"
#include "services/telemetry/metrics.h"
#include "switchyard/config/v1/worker.pb.h"

namespace switchyard::worker {

class Presence {
 public:
  // INVALID_ARGUMENT names the flag that does not fit; nothing is announced yet. `config` outlives
  // it.
  static absl::StatusOr<std::unique_ptr<Presence>> Create(const config::v1::WorkerConfig& config);

  // Once the worker serves, where `listening` says.
  void Announce(const std::string& listening, const Worker& worker, telemetry::Metrics& metrics);
  // Routers that are connected stay.
  void Withdraw();

 private:
  explicit Presence(const config::v1::WorkerConfig& config) : config_(config) {}
  std::string Address(const std::string& listening) const;

  const config::v1::WorkerConfig& config_;
  std::shared_ptr<discovery::EtcdClient> etcd_;  // null: none
  std::unique_ptr<discovery::Announcement> announcement_;
  telemetry::Metrics::Registration registration_;
};

}  // namespace switchyard::worker
