#include "services/config/routing_policy.h"

#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "services/base/status.h"

namespace switchyard::config {
namespace {

struct Policy {
  RoutingKind kind;
  const char* name;
  const char* form;  // for messages
};

constexpr Policy kPolicies[] = {
    {RoutingKind::kGate, "gate", "gate"},
    {RoutingKind::kEntropy, "entropy",
     "entropy:low=SHARE,few=K and/or entropy:high=SHARE,add=next-best|ID (or switch=ID)"},
    {RoutingKind::kCumulative, "cumulative", "cumulative:p=SHARE[,min=K]"},
    {RoutingKind::kCapacity, "capacity", "capacity:factor=F"},
    {RoutingKind::kNodeLimited, "node-limited", "node-limited:max=M[,nodes=N]"}};

const Policy& PolicyOf(RoutingKind kind) { return kPolicies[static_cast<size_t>(kind)]; }

// The keys of one policy's text. Each is taken once; what is left is unknown.
class Fields {
 public:
  Fields(const Policy& policy, std::map<std::string, std::string> values)
      : policy_(policy), values_(std::move(values)) {}

  absl::StatusOr<std::optional<double>> Number(const std::string& key, double low, double high) {
    const std::optional<std::string> text = Take(key);
    if (!text) return std::optional<double>();
    double value = 0;
    if (!absl::SimpleAtod(*text, &value) || !(value >= low && value <= high)) {
      return InvalidArgument("{}: {}=\"{}\" is not a number from {} to {}", policy_.name, key,
                             *text, low, high);
    }
    return std::optional<double>(value);
  }

  // `word`, if there is one, stands for kNextBest.
  absl::StatusOr<std::optional<int>> Integer(const std::string& key, int low,
                                             const char* word = nullptr) {
    const std::optional<std::string> text = Take(key);
    if (!text) return std::optional<int>();
    if (word != nullptr && *text == word) return std::optional<int>(RoutingOptions::kNextBest);
    int value = 0;
    if (!absl::SimpleAtoi(*text, &value) || value < low) {
      return InvalidArgument("{}: {}=\"{}\" is not an integer of {} or more{}", policy_.name, key,
                             *text, low, word == nullptr ? "" : fmt::format(" or \"{}\"", word));
    }
    return std::optional<int>(value);
  }

  absl::Status Done() const {
    if (values_.empty()) return absl::OkStatus();
    return InvalidArgument("{} has no \"{}\"; expected {}", policy_.name, values_.begin()->first,
                           policy_.form);
  }

  absl::Status Missing(const char* what) const {
    return InvalidArgument("{} needs {}; expected {}", policy_.name, what, policy_.form);
  }

 private:
  std::optional<std::string> Take(const std::string& key) {
    const auto it = values_.find(key);
    if (it == values_.end()) return std::nullopt;
    std::string value = std::move(it->second);
    values_.erase(it);
    return value;
  }

  const Policy& policy_;
  std::map<std::string, std::string> values_;
};

absl::Status ParseEntropy(Fields& fields, RoutingOptions* out) {
  SY_ASSIGN_OR_RETURN(out->low, fields.Number("low", 0, 1));
  SY_ASSIGN_OR_RETURN(out->few, fields.Integer("few", 1));
  SY_ASSIGN_OR_RETURN(out->high, fields.Number("high", 0, 1));
  SY_ASSIGN_OR_RETURN(out->add, fields.Integer("add", 0, "next-best"));
  SY_ASSIGN_OR_RETURN(out->switch_to, fields.Integer("switch", 0));
  if (!out->low && !out->high) return fields.Missing("low, high or both");
  if (out->low.has_value() != out->few.has_value()) {
    return fields.Missing("low and few together");
  }
  if (out->add && out->switch_to) return fields.Missing("either add or switch, not both");
  if (out->high.has_value() != (out->add || out->switch_to)) {
    return fields.Missing("high together with add or switch");
  }
  if (out->low && out->high && *out->low > *out->high) {
    return fields.Missing("a low that is not above high");
  }
  return absl::OkStatus();
}

absl::Status ParseFields(Fields& fields, RoutingOptions* out) {
  switch (out->kind) {
    case RoutingKind::kGate:
      return absl::OkStatus();
    case RoutingKind::kEntropy:
      return ParseEntropy(fields, out);
    case RoutingKind::kCumulative: {
      SY_ASSIGN_OR_RETURN(const std::optional<double> p, fields.Number("p", 0, 1));
      if (!p) return fields.Missing("p");
      SY_ASSIGN_OR_RETURN(const std::optional<int> min, fields.Integer("min", 1));
      out->p = *p, out->min = min.value_or(1);
      return absl::OkStatus();
    }
    case RoutingKind::kCapacity: {
      SY_ASSIGN_OR_RETURN(const std::optional<double> factor, fields.Number("factor", 0.01, 1e6));
      if (!factor) return fields.Missing("factor");
      out->factor = *factor;
      return absl::OkStatus();
    }
    case RoutingKind::kNodeLimited: {
      SY_ASSIGN_OR_RETURN(const std::optional<int> max, fields.Integer("max", 1));
      if (!max) return fields.Missing("max");
      SY_ASSIGN_OR_RETURN(const std::optional<int> nodes, fields.Integer("nodes", 1));
      out->max = *max, out->nodes = nodes.value_or(0);
      return absl::OkStatus();
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string RoutingOptions::Name() const {
  std::vector<std::string> parts;
  const auto number = [&](const char* key, std::optional<double> value) {
    if (value) parts.push_back(fmt::format("{}={}", key, *value));
  };
  const auto integer = [&](const char* key, std::optional<int> value) {
    if (value) parts.push_back(fmt::format("{}={}", key, *value));
  };
  switch (kind) {
    case RoutingKind::kGate:
      break;
    case RoutingKind::kEntropy:
      number("low", low), integer("few", few), number("high", high);
      if (add == kNextBest) {
        parts.push_back("add=next-best");
      } else {
        integer("add", add);
      }
      integer("switch", switch_to);
      break;
    case RoutingKind::kCumulative:
      number("p", p), integer("min", min);
      break;
    case RoutingKind::kCapacity:
      number("factor", factor);
      break;
    case RoutingKind::kNodeLimited:
      integer("max", max);
      if (nodes > 0) integer("nodes", nodes);
      break;
  }
  std::string name = PolicyOf(kind).name;
  if (!parts.empty()) name += ":" + absl::StrJoin(parts, ",");
  return name;
}

absl::StatusOr<RoutingOptions> ParseRoutingPolicy(std::string_view text) {
  const std::string_view name = text.substr(0, text.find(':'));
  const Policy* policy = nullptr;
  std::vector<std::string> names;
  for (const Policy& p : kPolicies) {
    if (name == p.name) policy = &p;
    names.push_back(p.name);
  }
  if (policy == nullptr) {
    return InvalidArgument("there is no policy \"{}\"; there are {}", name,
                           absl::StrJoin(names, ", "));
  }
  std::map<std::string, std::string> values;
  if (name.size() < text.size()) {
    for (absl::string_view item : absl::StrSplit(ToAbsl(text.substr(name.size() + 1)), ',')) {
      const std::vector<std::string> pair = absl::StrSplit(item, absl::MaxSplits('=', 1));
      if (pair.size() != 2 || !values.emplace(pair[0], pair[1]).second) {
        return InvalidArgument("{}: \"{}\" is {}; expected {}", name, std::string(item),
                               pair.size() != 2 ? "not KEY=VALUE" : "given twice", policy->form);
      }
    }
  }
  Fields fields(*policy, std::move(values));
  RoutingOptions options{.kind = policy->kind};
  SY_RETURN_IF_ERROR(ParseFields(fields, &options));
  SY_RETURN_IF_ERROR(fields.Done());
  return options;
}

}  // namespace switchyard::config
