// A gateway: text in front, token ids behind. Owns the model's text files, the streams to the
// routers, the pipeline and both listeners; keeps nothing but its open streams. The same object in
// switchyard-gateway and in the embedded server.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "gateway/api/admin_service.h"
#include "gateway/api/gateway_metrics.h"
#include "gateway/api/http_server.h"
#include "gateway/api/inference_service.h"
#include "gateway/api/openai_http.h"
#include "gateway/streams/generator.h"
#include "gateway/streams/served_model.h"
#include "gateway/upstream/router_client.h"
#include "services/rpc/server.h"
#include "services/security/keys.h"
#include "services/security/tls.h"
#include "services/telemetry/metrics.h"
#include "switchyard/config/v1/common.pb.h"

namespace switchyard::gateway {

struct GatewayOptions {
  std::string model_dir;
  std::string served_model_name;     // empty: the name of the directory
  std::vector<std::string> routers;  // HOST:PORT or unix:PATH; what the channel factory is given
  bool follow_routers = false;       // further ones may come, by FollowRouters
  bool log_routers = true;           // their states; false where they log in this process
  // See RouterClientOptions and GenerationOptions. In one process no router is lost alone.
  absl::Duration router_silence_max = absl::InfiniteDuration();
  absl::Duration router_wait = absl::ZeroDuration();
  bool allow_mixed_numerics = false;
  int resume_attempts = 4;
  HttpServerOptions http;    // http.address empty: no HTTP; TLS comes from `tls`
  std::string grpc_address;  // empty: no gRPC
  security::TlsFiles tls;    // of both listeners
  std::string api_key_file;  // empty: no key is asked for
};

// Knobs of the config protos into options.
void ApplyKnobs(const config::v1::FrontKnobs& front, const config::v1::TlsKnobs& tls,
                GatewayOptions* options);

// What a gateway reads before it listens.
struct GatewayFiles {
  std::unique_ptr<ServedModel> model;
  std::optional<security::KeySet> keys;  // none: no key is asked for

  // Errors name the file.
  static absl::StatusOr<GatewayFiles> Load(const GatewayOptions& options);
};

class Gateway {
 public:
  // Connects and listens. Errors name the address. `files` are those of `options`.
  static absl::StatusOr<std::unique_ptr<Gateway>> Create(
      const GatewayOptions& options, GatewayFiles files,
      const RouterClient::ChannelFactory& channels, std::shared_ptr<telemetry::Metrics> metrics);
  ~Gateway();  // Stop()
  Gateway(const Gateway&) = delete;
  Gateway& operator=(const Gateway&) = delete;

  // See RouterClient::Follow.
  void FollowRouters(const std::vector<std::string>& addresses) { routers_->Follow(addresses); }

  // With the chosen ports; empty where there is no such listener.
  std::string http_address() const;
  std::string http_url() const;  // "http://127.0.0.1:8000", or "unix:/run/http.sock"
  std::string grpc_address() const;
  const ServedModel& model() const { return *files_.model; }

  // Why requests are not taken, one line; empty if they are.
  std::string Missing() const;
  int ready_routers() const;

  // Not ready from now on; waits up to `timeout` for what runs and until its answers are written,
  // ends the rest, then stops.
  // Thread-safe against everything but itself.
  void Drain(absl::Duration timeout);
  void Stop();

 private:
  Gateway() = default;
  absl::Status StartRouters(const GatewayOptions& options,
                            const RouterClient::ChannelFactory& channels);
  absl::Status StartListeners(const GatewayOptions& options);
  void StartCollector();
  void UpdateHealth();

  bool tls_ = false;
  // In the order of construction: what comes later uses what stands before.
  GatewayFiles files_;
  std::unique_ptr<GatewayMetrics> metrics_;
  std::shared_ptr<telemetry::Metrics> registry_;
  std::unique_ptr<RouterClient> routers_;
  std::unique_ptr<Generator> generator_;
  std::unique_ptr<OpenAiHttp> openai_;
  std::unique_ptr<InferenceService> inference_;
  std::unique_ptr<AdminService> admin_;
  std::unique_ptr<HttpServer> http_;
  mutable absl::Mutex mutex_;
  bool running_ ABSL_GUARDED_BY(mutex_) = false;  // all is built and nothing is stopped
  std::unique_ptr<rpc::Server> grpc_ ABSL_GUARDED_BY(mutex_);  // health is set by gRPC's threads
  telemetry::Metrics::Registration collector_;
};

}  // namespace switchyard::gateway
