// Gateway, router and expert workers in one process: the same objects as the mains assemble. Router
// and workers meet through local links (rows by reference, one compute pool, no thread hop),
// gateway and router over gRPC's in-process channel. With `sockets`, the fabric of the cluster
// tests: each service listens on a port of its own and computes on its own pool, as separate
// processes would.
//
// Thread-safe but for Create and the destructor.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "expert-worker/device/open_device.h"
#include "expert-worker/worker.h"
#include "gateway/gateway.h"
#include "router/router.h"
#include "services/kernels/thread_pool.h"
#include "services/telemetry/metrics.h"

namespace switchyard::embedded {

struct LocalClusterOptions {
  std::string model_dir;
  int threads = 0;  // of the one pool; 0: one a core. With sockets: of the router
  // dtype, isa, KV, limits; its model_dir, threads, workers and listen are set here.
  router::RouterOptions router;
  // Addresses, keys, name; its model_dir and routers are set here.
  gateway::GatewayOptions gateway;
  // Parts of the experts, as WorkerOptions::experts; each becomes one worker.
  std::vector<std::string> parts = {"0/1"};
  // What computes experts; parts share its memory, and experts that it has no room for come and go.
  worker::DeviceUse device;
  bool sockets = false;
  int routers = 1;  // more than one: with sockets
};

class LocalCluster {
 public:
  static absl::StatusOr<std::unique_ptr<LocalCluster>> Create(const LocalClusterOptions& options);
  ~LocalCluster();

  gateway::Gateway& gateway();
  router::Router& router(int i = 0);
  worker::Worker& worker(int i);

  // OK when the gateway takes requests; DEADLINE_EXCEEDED says what is missing.
  absl::Status WaitReady(absl::Duration timeout);

  // With sockets: ends a worker as a crash would (its streams break), or brings it back at the same
  // address.
  void StopWorker(int i);
  absl::Status StartWorker(int i);
  // The same of a router.
  void StopRouter(int i);
  absl::Status StartRouter(int i);

  // Why no expert can be computed any more: a device that is lost; else OK.
  absl::Status failure() const;

  // Gateway, router, workers: none takes new work, what runs has up to `timeout`.
  void Drain(absl::Duration timeout);

 private:
  class Impl;
  explicit LocalCluster(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard::embedded
