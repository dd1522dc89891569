#include "absl/strings/numbers.h"
#include "router/router.h"
#include "services/base/check.h"
#include "services/base/status.h"
#include "services/config/routing_policy.h"
#include "services/config/units.h"

namespace switchyard::router {
namespace {

constexpr absl::Duration kBalanceLeast = absl::Milliseconds(100);

}  // namespace

void ApplyKnobs(const config::v1::EngineKnobs& knobs, RouterOptions* options) {
  if (knobs.has_kv_memory()) {
    const auto bytes = config::ParseBytes(knobs.kv_memory());
    SY_CHECK(bytes.ok());
    options->kv_bytes = *bytes;
  }
  if (knobs.kv_dtype() == "bfloat16") options->kv_dtype = DType::kBF16;
  if (knobs.kv_dtype() == "int8") options->kv_dtype = DType::kI8;
  if (knobs.kv_dtype() == "fp8") options->kv_dtype = DType::kF8E4M3;
  options->max_model_len = knobs.max_model_len();
  options->max_batch_tokens = knobs.max_batch_tokens();
  options->max_running = knobs.max_running();
  options->max_queue = knobs.max_queue();
  options->prefix_cache = knobs.prefix_cache() == "on";
  options->speculate_ngram = knobs.speculate_ngram();
  const auto routing = config::ParseRoutingPolicy(knobs.routing_policy());
  SY_CHECK(routing.ok());
  options->routing = *routing;
  options->step_target_ms = knobs.step_target_ms();
  options->expert_metrics = knobs.expert_metrics() == "all"       ? ExpertMetrics::kAll
                            : knobs.expert_metrics() == "summary" ? ExpertMetrics::kSummary
                                                                  : ExpertMetrics::kOff;
}

void ApplyKnobs(const config::v1::WeightKnobs& knobs, RouterOptions* options) {
  options->dtype = knobs.dtype() == "float32" ? DType::kF32 : DType::kBF16;
  options->weight_check = !knobs.no_weight_check();
}

void ApplyKnobs(const config::v1::FleetKnobs& knobs, RouterOptions* options) {
  options->placement = knobs.placement();
  options->takeover = !knobs.no_takeover();
  options->hedge = !knobs.no_hedge();
  const auto patience = config::ParseDuration(knobs.expert_patience());
  SY_CHECK(patience.ok());
  options->expert_patience = *patience;
  for (const LostExperts how : {LostExperts::kRenormalise, LostExperts::kNextBest}) {
    if (knobs.lost_experts() == Name(how)) options->lost_experts = how;
  }
}

absl::Status ApplyKnobs(const config::v1::BalanceKnobs& knobs, RouterOptions* options) {
  SY_ASSIGN_OR_RETURN(const absl::Duration every, config::ParseDuration(knobs.balance()));
  if (every > absl::ZeroDuration() && every < kBalanceLeast) {
    return UsageError("--balance: {} is too often; expected 0s, or {} at least", knobs.balance(),
                      absl::FormatDuration(kBalanceLeast));
  }
  options->balances = every > absl::ZeroDuration();
  options->balancer.every = every;
  BalanceOptions& balance = options->balancer.balance;
  balance.plan.min_replicas = knobs.balance_min_replicas();
  balance.plan.extra_memory = knobs.balance_extra_memory() / 100.0;
  balance.plan.max_experts_per_node = knobs.balance_max_experts_per_node();
  const std::string& width = knobs.balance_width();
  balance.best_width = width == "auto";
  if (width == "all" || width == "auto") return absl::OkStatus();
  if (!absl::SimpleAtoi(width, &balance.plan.width) || balance.plan.width < 1) {
    return UsageError("--balance-width: \"{}\"; expected all, auto or a number of workers", width);
  }
  return absl::OkStatus();
}

void ApplyKnobs(const config::v1::ComputeKnobs& knobs, RouterOptions* options) {
  options->threads = knobs.threads();
  options->isa = knobs.isa();
}

security::TlsFiles TlsFilesOf(const config::v1::TlsKnobs& knobs) {
  return {.cert = knobs.tls_cert(), .key = knobs.tls_key(), .ca = knobs.tls_ca()};
}

}  // namespace switchyard::router
