// The gate's choice, adjusted by a policy (services/config/routing_policy.h): fewer experts for a
// token, one more, or others. What a policy does not touch keeps the bits that the gate gives it;
// what it touches is weighed anew as the model's family weighs its chosen experts.
//
// Select is pure and may run on several threads at once, and so may Count and counts.
// LimitLoads belongs to the engine thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "router/graph/gate.h"
#include "services/config/routing_policy.h"
#include "services/model/spec.h"

namespace switchyard::router {

using config::RoutingKind;
using config::RoutingOptions;

// Whether the policy fits the model. Messages begin with --routing-policy.
absl::Status CheckRouting(const RoutingOptions& options, const ModelSpec& spec);

// What a policy did. A row is a token in a layer.
struct RoutingCounts {
  uint64_t rows = 0;
  uint64_t changed = 0;                   // rows that got other experts than the gate's
  uint64_t fallbacks = 0;                 // of them, rows above the high entropy
  uint64_t moved = 0;                     // pairs that went to the next best, for want of room
  uint64_t dropped = 0;                   // pairs that no expert had room for
  uint64_t experts = 0;                   // pairs
  std::array<uint64_t, 17> by_experts{};  // rows of so many experts; the last: and of more
  uint64_t entropy_millionths = 0;
  std::array<uint64_t, 10> by_entropy{};  // rows up to 0.1, 0.2, … of the greatest entropy

  void Add(const RoutingCounts& other);
};

class RoutingPolicy {
 public:
  // Options are valid for the spec, which outlives the policy.
  RoutingPolicy(const RoutingOptions& options, const ModelSpec& spec);

  const RoutingOptions& options() const { return options_; }
  int width() const { return width_; }          // places for experts in each row
  int64_t scratch() const { return scratch_; }  // floats of a row, beside SelectExperts' own

  // SelectExperts under the policy, but for loads: `ids` [width] ascending, then kNoExpert, with
  // `weights` [width], 0 there. `scratch`: GateScratch and scratch() floats.
  void Select(std::span<float> logits, std::span<const float> correction_bias, float* scratch,
              int32_t* ids, float* weights, RoutingCounts* counts) const;

  // After Select of all rows of a micro-batch, for a policy that depends on it: [rows, stride]
  // logits, each followed by its scratch, as Select left them.
  void LimitLoads(int64_t rows, float* logits, int64_t stride, bool has_correction_bias,
                  int32_t* ids, float* weights, RoutingCounts* counts);

  void Count(const RoutingCounts& counts);
  RoutingCounts counts() const;

 private:
  struct Row;

  void ApplyEntropy(Row& row, const float* kept, float* probabilities, RoutingCounts* counts) const;
  void Fall(Row& row, RoutingCounts* counts) const;
  void ApplyCumulative(Row& row) const;
  void ApplyNodes(Row& row, float* selection) const;
  void KeepHeaviest(Row& row, int64_t count) const;
  template <typename May>
  int32_t NextBest(const Row& row, May may) const;
  bool Allowed(float selection) const { return selection > masked_; }
  void Finish(Row& row) const;
  static void CountRow(const Row& row, RoutingCounts* counts);

  const RoutingOptions options_;
  const GateSpec& gate_;
  const int experts_, width_;
  const int64_t scratch_;
  const double greatest_entropy_;
  const float masked_;          // selection scores of masked groups' experts
  std::vector<int32_t> loads_;  // [experts], of LimitLoads

  mutable absl::Mutex mutex_;
  RoutingCounts counts_ ABSL_GUARDED_BY(mutex_);
};

// Natural logarithm of x > 0, the same bits on every CPU; NaN of a NaN.
double Log(double x);

// Entropy of `probabilities` = softmax(logits), in nats. NaN where a logit is one.
double Entropy(std::span<const float> logits, std::span<const float> probabilities);

}  // namespace switchyard::router
