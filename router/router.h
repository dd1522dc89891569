// A router, assembled: checkpoint, weights, KV, links to the experts, dispatcher, decoder, engine
// and the gRPC service. The same object behind switchyard-router and inside the embedded server.
//
// Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "router/fleet/balancer.h"
#include "router/graph/lost_experts.h"
#include "router/loop/engine.h"
#include "router/service/router_metrics.h"
#include "services/checkpoint/tensor_source.h"
#include "services/config/routing_policy.h"
#include "services/device/cuda.h"
#include "services/device/device_experts.h"
#include "services/expertwire/expert_link.h"
#include "services/kernels/thread_pool.h"
#include "services/model/spec.h"
#include "services/security/tls.h"
#include "services/telemetry/metrics.h"
#include "services/tensor/dtype.h"
#include "switchyard/config/v1/common.pb.h"

namespace grpc {
class Server;
}

namespace switchyard::discovery {
class EtcdClient;
}

namespace switchyard::router {

struct RouterOptions {
  std::string router_id = "router";  // names this side in refusals and logs
  std::string model_dir;
  DType dtype = DType::kBF16;  // of activations and wire: kBF16 or kF32
  bool weight_check = true;    // looks for NaN and infinity in its weights; reads them all
  std::string isa = "auto";
  int threads = 0;                // of its own pool; 0: one a core; not used with a shared pool
  std::optional<DType> kv_dtype;  // kBF16, kI8 or kF8E4M3; none: dtype
  int64_t kv_bytes = 0;           // 0: half of what is free after loading
  int max_model_len = 0;          // 0: what model and KV allow
  int max_batch_tokens = 2048;
  int max_running = 256;
  int max_queue = 1024;
  bool prefix_cache = true;
  int step_target_ms = 500;        // of a step with decodes; 0: none
  int speculate_ngram = 0;         // tokens guessed for a sequence in a step; 0: none
  config::RoutingOptions routing;  // other than the gate's: changes tokens
  ExpertMetrics expert_metrics = ExpertMetrics::kAll;
  bool allow_mixed_numerics = false;
  // File of a placement document, or "etcd"; empty: workers hold what they hold.
  std::string placement;
  bool balances = false;     // placements are made here, or by another router of the same etcd
  BalancerOptions balancer;  // if so
  bool takeover = true;      // the experts of lost workers are loaded by the others
  absl::Duration expert_patience = absl::Seconds(30);  // of rows whose expert nobody holds
  LostExperts lost_experts = LostExperts::kFail;       // other than kFail: changes tokens
  bool hedge = true;                 // rows that are late are sent to a replica too
  bool shared_memory = true;         // with the other side of the wire, where it runs on this host
  std::vector<std::string> workers;  // HOST:PORT, dns:NAME:PORT or unix:PATH
  absl::Duration dns_refresh = absl::Seconds(5);  // of names among them
  std::shared_ptr<discovery::EtcdClient> etcd;    // where further ones are announced; null: none
  std::string listen;                             // empty: in-process only
  security::TlsFiles tls;                         // of the listener, and shown to the workers
  // What computes all but the experts; null: the CPU. It takes bf16 alone, and the gate's own
  // choice.
  std::shared_ptr<const device::Cuda> cuda;
  std::string device_flag = "--device";  // that chose it, for errors
};

// A checkpoint that was opened and identified.
struct OpenedModel {
  ModelSpec spec;
  std::string fingerprint;
  std::shared_ptr<checkpoint::TensorSource> source;
};
absl::StatusOr<OpenedModel> OpenModel(const std::string& model_dir);

// What the embedded server shares with its router; the pointers outlive it.
struct RouterShared {
  const OpenedModel* model = nullptr;  // null: opened here
  kernels::ThreadPool* pool = nullptr;
  struct LocalWorker {
    std::string name;
    expertwire::CallHandler* handler = nullptr;
  };
  std::vector<LocalWorker> workers;
  uint64_t other_weight_bytes = 0;  // of these workers
  // Of a device that computes the router's part, too: these are computed there by reference. null:
  // by the workers.
  const device::DeviceExperts* device_experts = nullptr;
  std::string expert_arithmetic;          // of these workers; empty: of this CPU
  telemetry::Metrics* metrics = nullptr;  // null: its own
};

class Router {
 public:
  // Called when it becomes ready or ceases to be, with what is missing; on a thread of the
  // router's.
  using ReadyCallback = std::function<void(bool ready, const std::string& missing)>;

  // What Create refuses before it reads weights: memory that cannot hold them and the KV cache of a
  // sequence, a length that the model has not.
  static absl::Status CheckFits(const RouterOptions& options, const OpenedModel& model,
                                uint64_t other_weight_bytes);
  // Loads the model, starts the engine and the listener, and goes on connecting to its workers.
  static absl::StatusOr<std::unique_ptr<Router>> Create(const RouterOptions& options,
                                                        const RouterShared& shared,
                                                        ReadyCallback on_ready = nullptr);
  ~Router();  // Stop(0)

  const std::string& address() const;  // of the listener; "" in-process
  grpc::Server& server();              // for in-process channels
  int max_model_len() const;
  EngineSnapshot Snapshot() const;
  // Why nothing can be computed any more: DATA_LOSS of a device that is lost; else OK.
  absl::Status failure() const;

  // Not ready from now on; requests that run go on.
  void BeginDrain();
  // Whether all of them have ended; waits up to `timeout`.
  bool WaitDrained(absl::Duration timeout);
  // Ends streams, server and engine; waits up to `grace` for what is still being written.
  void Stop(absl::Duration grace);

 private:
  class Impl;
  explicit Router(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Knobs of the config protos into options. The values were checked when they were loaded.
void ApplyKnobs(const config::v1::EngineKnobs& knobs, RouterOptions* options);
void ApplyKnobs(const config::v1::WeightKnobs& knobs, RouterOptions* options);
void ApplyKnobs(const config::v1::FleetKnobs& knobs, RouterOptions* options);
// INVALID_ARGUMENT names the knob.
absl::Status ApplyKnobs(const config::v1::BalanceKnobs& knobs, RouterOptions* options);
void ApplyKnobs(const config::v1::ComputeKnobs& knobs, RouterOptions* options);
security::TlsFiles TlsFilesOf(const config::v1::TlsKnobs& knobs);

}  // namespace switchyard::router
