// Which experts a token gets beside what the model's own gate says: one policy with its numbers, as
// --routing-policy spells it. docs/operating/routing-policies.md says what each does and costs.
//
//   gate                                                  the model's own choice
//   entropy:low=0.6,few=2 | entropy:high=0.9,add=next-best | entropy:high=0.9,switch=17
//   cumulative:p=0.8,min=1
//   capacity:factor=1.25
//   node-limited:max=2,nodes=4
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace switchyard::config {

enum class RoutingKind { kGate, kEntropy, kCumulative, kCapacity, kNodeLimited };

struct RoutingOptions {
  static constexpr int kNextBest = -1;

  RoutingKind kind = RoutingKind::kGate;

  // Entropy: of the softmax over all experts, as a share of the greatest possible, ln(experts).
  std::optional<double> low;     // below it the best `few` of the chosen stay
  std::optional<int> few;        // >= 1
  std::optional<double> high;    // above it the fallback acts
  std::optional<int> add;        // this expert, or kNextBest, joins the chosen
  std::optional<int> switch_to;  // this expert alone takes the token

  // Cumulative: the fewest of the chosen whose weights make this share of all of theirs.
  double p = 1;
  int min = 1;

  // Capacity: rows that an expert may take, over the mean of a micro-batch's rows an expert.
  double factor = 0;

  // Node-limited: experts of a token come from at most `max` nodes. A node is one of `nodes` equal
  // ranges of ids; 0: the gate's groups.
  int max = 0;
  int nodes = 0;

  bool gate() const { return kind == RoutingKind::kGate; }
  // Tokens then depend on what else is computed in a step.
  bool depends_on_batch() const { return kind == RoutingKind::kCapacity; }
  // The one spelling of these options: "cumulative:p=0.8,min=1". Different tokens, different names.
  std::string Name() const;

  bool operator==(const RoutingOptions&) const = default;
};

// Messages name the part that is wrong, and the form that is expected.
absl::StatusOr<RoutingOptions> ParseRoutingPolicy(std::string_view text);

}  // namespace switchyard::config
