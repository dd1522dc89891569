#include "gateway/api/gateway_metrics.h"

namespace switchyard::gateway {

GatewayMetrics::GatewayMetrics(std::shared_ptr<telemetry::Metrics> metrics)
    : metrics_(std::move(metrics)),
      first_token_(metrics_->Histogram(telemetry::kGatewayFirstTokenSeconds, kGatewayService)),
      next_token_(metrics_->Histogram(telemetry::kGatewayInterTokenSeconds, kGatewayService)),
      prompt_tokens_(metrics_->Counter(telemetry::kGatewayPromptTokens, kGatewayService)),
      output_tokens_(metrics_->Counter(telemetry::kGatewayOutputTokens, kGatewayService)),
      stall_(metrics_->Histogram(telemetry::kGatewayStallSeconds, kGatewayService)),
      stale_tokens_(metrics_->Counter(telemetry::kGatewayStaleTokens, kGatewayService)) {}

void GatewayMetrics::RequestEnded(const std::string& api, const std::string& route,
                                  const std::string& code, absl::Duration took) {
  metrics_
      ->Counter(telemetry::kGatewayRequests, kGatewayService,
                {{"api", api}, {"route", route}, {"code", code}})
      .Increment();
  metrics_
      ->Histogram(telemetry::kGatewayRequestSeconds, kGatewayService,
                  {{"api", api}, {"route", route}})
      .Observe(absl::ToDoubleSeconds(took));
}

void GatewayMetrics::OnStart(int prompt_tokens) { prompt_tokens_.Increment(prompt_tokens); }

void GatewayMetrics::OnFirstToken(absl::Duration since_start) {
  first_token_.Observe(absl::ToDoubleSeconds(since_start));
}

void GatewayMetrics::OnNextToken(absl::Duration since_last) {
  next_token_.Observe(absl::ToDoubleSeconds(since_last));
}

void GatewayMetrics::OnEnd(absl::StatusCode, int completion_tokens) {
  output_tokens_.Increment(completion_tokens);
}

void GatewayMetrics::OnResumed(const char* reason) {
  metrics_->Counter(telemetry::kGatewayResumed, kGatewayService, {{"reason", reason}}).Increment();
}

void GatewayMetrics::OnStall(absl::Duration took) { stall_.Observe(absl::ToDoubleSeconds(took)); }

void GatewayMetrics::OnStaleToken() { stale_tokens_.Increment(); }

void GatewayMetrics::OnDegraded(v1::Degraded how) {
  metrics_->Counter(telemetry::kGatewayDegraded, kGatewayService, {{"policy", NameOf(how)}})
      .Increment();
}

}  // namespace switchyard::gateway
