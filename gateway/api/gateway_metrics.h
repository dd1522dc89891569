// What the gateway counts itself, over both fronts. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "gateway/streams/generation.h"
#include "services/telemetry/metrics.h"

namespace switchyard::gateway {

inline constexpr char kGatewayService[] = "gateway";

class GatewayMetrics final : public GenerationObserver {
 public:
  explicit GatewayMetrics(std::shared_ptr<telemetry::Metrics> metrics);

  // api: "http" or "grpc"; route: one of a fixed set; code: of HTTP or gRPC.
  void RequestEnded(const std::string& api, const std::string& route, const std::string& code,
                    absl::Duration took);

  void OnStart(int prompt_tokens) override;
  void OnFirstToken(absl::Duration since_start) override;
  void OnNextToken(absl::Duration since_last) override;
  void OnEnd(absl::StatusCode code, int completion_tokens) override;
  void OnResumed(const char* reason) override;
  void OnStall(absl::Duration took) override;
  void OnStaleToken() override;
  void OnDegraded(v1::Degraded how) override;

  telemetry::Metrics& registry() { return *metrics_; }

 private:
  const std::shared_ptr<telemetry::Metrics> metrics_;
  prometheus::Histogram& first_token_;
  prometheus::Histogram& next_token_;
  prometheus::Counter& prompt_tokens_;
  prometheus::Counter& output_tokens_;
  prometheus::Histogram& stall_;
  prometheus::Counter& stale_tokens_;
};

}  // namespace switchyard::gateway
