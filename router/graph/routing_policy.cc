#include "router/graph/routing_policy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/container/inlined_vector.h"
#include "router/dispatch/dispatcher.h"
#include "services/base/check.h"
#include "services/base/status.h"
#include "services/kernels/kernels.h"

namespace switchyard::router {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

using Ids = absl::InlinedVector<int32_t, 16>;

// The places of the `count` values, largest first.
Ids Order(const float* values, int64_t count) {
  Ids order(static_cast<size_t>(count));
  TopK(values, count, count, order.data());
  return order;
}

// A node is one of so many equal ranges of ids.
int NodesOf(const RoutingOptions& options, const ModelSpec& spec) {
  return options.nodes > 0 ? options.nodes : spec.gate.groups;
}

absl::Status CheckExpert(const char* key, std::optional<int> expert, int experts) {
  if (!expert || *expert < experts) return absl::OkStatus();
  return InvalidArgument("--routing-policy entropy: {}={}, but a layer has experts 0 to {}", key,
                         *expert, experts - 1);
}

absl::Status CheckCount(const char* policy, const char* key, int count, int top_k) {
  if (count <= top_k) return absl::OkStatus();
  return InvalidArgument("--routing-policy {}: {}={}, but the model chooses {} experts a token",
                         policy, key, count, top_k);
}

absl::Status CheckNodes(const RoutingOptions& options, const ModelSpec& spec) {
  const int nodes = NodesOf(options, spec), experts = spec.experts.count;
  if (nodes <= 1) {
    return InvalidArgument(
        "--routing-policy node-limited: the model's gate has no groups that could be nodes; "
        "nodes=N cuts its {} experts into N equal ranges",
        experts);
  }
  if (experts % nodes != 0) {
    return InvalidArgument("--routing-policy node-limited: nodes={} does not divide {} experts",
                           nodes, experts);
  }
  if (options.max > nodes || options.max * (experts / nodes) < spec.gate.top_k) {
    return InvalidArgument(
        "--routing-policy node-limited: max={} of {} nodes of {} experts; a token needs {} experts",
        options.max, nodes, experts / nodes, spec.gate.top_k);
  }
  return absl::OkStatus();
}

int64_t ScratchOf(RoutingKind kind, int experts) {
  if (kind == RoutingKind::kEntropy) return 2 * int64_t{experts};  // logits, probabilities
  if (kind == RoutingKind::kNodeLimited) return experts;           // scores for selection
  return 0;
}

}  // namespace

absl::Status CheckRouting(const RoutingOptions& options, const ModelSpec& spec) {
  const int experts = spec.experts.count, top_k = spec.gate.top_k;
  switch (options.kind) {
    case RoutingKind::kGate:
    case RoutingKind::kCapacity:
      return absl::OkStatus();
    case RoutingKind::kEntropy:
      if (experts < 2) {
        return InvalidArgument("--routing-policy entropy: the model has {} expert a layer",
                               experts);
      }
      if (options.add && top_k == experts) {
        return InvalidArgument("--routing-policy entropy: add, but every token has all {} experts",
                               experts);
      }
      SY_RETURN_IF_ERROR(CheckCount("entropy", "few", options.few.value_or(1), top_k));
      SY_RETURN_IF_ERROR(CheckExpert("add", options.add, experts));
      return CheckExpert("switch", options.switch_to, experts);
    case RoutingKind::kCumulative:
      return CheckCount("cumulative", "min", options.min, top_k);
    case RoutingKind::kNodeLimited:
      return CheckNodes(options, spec);
  }
  return absl::OkStatus();
}

// One token's choice in the making.
struct RoutingPolicy::Row {
  const float* weighed;  // [experts], what weights are made of
  float* selection;      // [experts], what was compared
  int32_t* ids;          // [width]
  float* weights;        // [width]
  int64_t count;         // of ids
  bool changed = false;

  std::span<const int32_t> chosen() const { return {ids, static_cast<size_t>(count)}; }
  bool Has(int32_t expert) const { return std::ranges::count(chosen(), expert) > 0; }
};

void RoutingCounts::Add(const RoutingCounts& other) {
  rows += other.rows, changed += other.changed, fallbacks += other.fallbacks;
  moved += other.moved, dropped += other.dropped, experts += other.experts;
  entropy_millionths += other.entropy_millionths;
  for (size_t i = 0; i < by_experts.size(); ++i) by_experts[i] += other.by_experts[i];
  for (size_t i = 0; i < by_entropy.size(); ++i) by_entropy[i] += other.by_entropy[i];
}

// 2 artanh((m - 1) / (m + 1)) of the mantissa between √½ and √2: libm's differs between CPUs.
double Log(double x) {
  constexpr double kLn2 = 0.69314718055994530942;
  int exponent = 0;
  double m = std::frexp(x, &exponent);
  if (m < 0.70710678118654752440) m *= 2, --exponent;
  const double t = (m - 1) / (m + 1), t2 = t * t;
  double series = 0;
  for (int i = 19; i >= 1; i -= 2) series = series * t2 + 1.0 / i;
  return 2 * t * series + exponent * kLn2;
}

// −Σ p ln p with ln p = x − greatest − ln Z, and 1 / Z the greatest probability.
double Entropy(std::span<const float> logits, std::span<const float> probabilities) {
  float greatest = -kInfinity, most = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    greatest = std::max(greatest, logits[i]);
    most = std::max(most, probabilities[i]);
  }
  if (!(most > 0)) return std::numeric_limits<double>::quiet_NaN();
  double sum = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (probabilities[i] == 0) continue;
    sum += double{probabilities[i]} * (double{logits[i]} - double{greatest});
  }
  return -Log(most) - sum;
}

RoutingPolicy::RoutingPolicy(const RoutingOptions& options, const ModelSpec& spec)
    : options_(options),
      gate_(spec.gate),
      experts_(spec.experts.count),
      width_(spec.gate.top_k + (options.add ? 1 : 0)),
      scratch_(ScratchOf(options.kind, spec.experts.count)),
      greatest_entropy_(Log(spec.experts.count)),
      masked_(LimitsGroups(gate_) && gate_.score != GateScore::kSigmoid ? 0.0f : -kInfinity) {
  SY_CHECK(CheckRouting(options, spec).ok());
}

void RoutingPolicy::Select(std::span<float> logits, std::span<const float> correction_bias,
                           float* scratch, int32_t* ids, float* weights,
                           RoutingCounts* counts) const {
  float* own = scratch + GateScratch(gate_, experts_);
  if (options_.kind == RoutingKind::kEntropy) std::ranges::copy(logits, own);
  SelectExperts(gate_, logits, correction_bias, scratch, ids, weights);
  if (options_.depends_on_batch()) return;
  Row row = {.weighed = WeighedScores(gate_, !correction_bias.empty(), logits.data(), scratch),
             .selection = scratch,
             .ids = ids,
             .weights = weights,
             .count = gate_.top_k};
  if (options_.kind == RoutingKind::kEntropy) {
    const int32_t named = options_.add.value_or(options_.switch_to.value_or(-1));
    // Whoever names an expert wants it whatever its group is.
    if (named >= 0 && !row.Has(named) && !Allowed(scratch[named])) scratch[named] = logits[named];
    ApplyEntropy(row, own, own + experts_, counts);
  }
  if (options_.kind == RoutingKind::kCumulative) ApplyCumulative(row);
  if (options_.kind == RoutingKind::kNodeLimited) ApplyNodes(row, own);
  Finish(row);
  CountRow(row, counts);
}

void RoutingPolicy::ApplyEntropy(Row& row, const float* kept, float* probabilities,
                                 RoutingCounts* counts) const {
  std::copy_n(kept, experts_, probabilities);
  kernels::Softmax(probabilities, experts_);
  const size_t experts = static_cast<size_t>(experts_);
  const double share = Entropy({kept, experts}, {probabilities, experts}) / greatest_entropy_;
  if (!(share >= 0)) return;  // a NaN: the gate's choice
  const auto buckets = static_cast<int64_t>(counts->by_entropy.size());
  const auto bucket = static_cast<int64_t>(std::ceil(share * static_cast<double>(buckets))) - 1;
  ++counts->by_entropy[static_cast<size_t>(std::clamp<int64_t>(bucket, 0, buckets - 1))];
  counts->entropy_millionths += static_cast<uint64_t>(share * 1e6);
  if (options_.low && share < *options_.low) KeepHeaviest(row, *options_.few);
  if (options_.high && share > *options_.high) Fall(row, counts);
}

void RoutingPolicy::Fall(Row& row, RoutingCounts* counts) const {
  int32_t expert = options_.add.value_or(-1);
  if (options_.switch_to) {
    if (row.count == 1 && row.Has(*options_.switch_to)) return;
    expert = *options_.switch_to;
    row.count = 0;
  } else if (expert == RoutingOptions::kNextBest) {
    expert = NextBest(row, [&](int32_t e) { return !row.Has(e); });
  }
  if (expert < 0 || row.Has(expert)) return;
  row.ids[row.count++] = expert;
  row.changed = true;
  ++counts->fallbacks;
}

void RoutingPolicy::ApplyCumulative(Row& row) const {
  if (options_.p >= 1) return;
  const Ids order = Order(row.weights, row.count);
  float all = 0, sum = 0;
  for (const int32_t i : order) all += row.weights[i];
  int64_t count = 0;
  while (count < row.count && !(count >= options_.min && sum >= options_.p * all)) {
    sum += row.weights[order[static_cast<size_t>(count++)]];
  }
  KeepHeaviest(row, count);
}

// A node counts as much as its best experts, as many as it would have to give.
void RoutingPolicy::ApplyNodes(Row& row, float* selection) const {
  const int64_t nodes = options_.nodes > 0 ? options_.nodes : gate_.groups;
  const int64_t per_node = experts_ / nodes;
  int64_t used = 0;
  for (int64_t i = 0, last = -1; i < row.count; ++i) {
    used += row.ids[i] / per_node != last;
    last = row.ids[i] / per_node;
  }
  if (used <= options_.max) return;
  const int64_t wanted =
      std::min<int64_t>((gate_.top_k + options_.max - 1) / options_.max, per_node);
  absl::InlinedVector<float, 32> scores(static_cast<size_t>(nodes));
  Ids best(static_cast<size_t>(std::max(wanted, nodes)));
  for (int64_t node = 0; node < nodes; ++node) {
    const float* of_node = row.selection + node * per_node;
    TopK(of_node, per_node, wanted, best.data());
    float& score = scores[static_cast<size_t>(node)];
    for (int64_t i = 0; i < wanted; ++i) score += of_node[best[static_cast<size_t>(i)]];
  }
  TopK(scores.data(), nodes, options_.max, best.data());
  std::fill_n(selection, experts_, -kInfinity);
  for (int64_t i = 0; i < options_.max; ++i) {
    const int64_t first = best[static_cast<size_t>(i)] * per_node;
    std::copy_n(row.selection + first, per_node, selection + first);
  }
  TopK(selection, experts_, gate_.top_k, row.ids);
  // Of kept nodes whose groups are masked, too few may be left.
  const auto end = std::remove_if(row.ids, row.ids + gate_.top_k,
                                  [&](int32_t e) { return !Allowed(selection[e]); });
  row.count = end - row.ids;
  row.changed = true;
}

// Leaves the `count` of the chosen that weigh most, the lower ids of equals.
void RoutingPolicy::KeepHeaviest(Row& row, int64_t count) const {
  if (count >= row.count) return;
  const Ids order = Order(row.weights, row.count);
  Ids kept;
  for (int64_t i = 0; i < count; ++i) {
    kept.push_back(row.ids[order[static_cast<size_t>(i)]]);
  }
  std::ranges::copy(kept, row.ids);
  row.count = count;
  row.changed = true;
}

// Of the experts that may be taken the best by the gate's scores; -1 if there is none.
template <typename May>
int32_t RoutingPolicy::NextBest(const Row& row, May may) const {
  int32_t best = -1;
  for (int32_t e = 0; e < experts_; ++e) {
    if (!Allowed(row.selection[e]) || !may(e)) continue;
    if (best < 0 || row.selection[e] > row.selection[best]) best = e;
  }
  return best;
}

// Sorts and weighs what a policy chose, and marks the places that are left.
void RoutingPolicy::Finish(Row& row) const {
  if (row.changed) {
    std::sort(row.ids, row.ids + row.count);
    WeighExperts(gate_, row.weighed, row.chosen(), row.weights);
  }
  std::fill(row.ids + row.count, row.ids + width_, kNoExpert);
  std::fill(row.weights + row.count, row.weights + width_, 0.0f);
}

void RoutingPolicy::CountRow(const Row& row, RoutingCounts* counts) {
  ++counts->rows;
  counts->changed += row.changed;
  counts->experts += static_cast<uint64_t>(row.count);
  ++counts->by_experts[std::min(static_cast<size_t>(row.count), counts->by_experts.size() - 1)];
}

void RoutingPolicy::LimitLoads(int64_t rows, float* logits, int64_t stride,
                               bool has_correction_bias, int32_t* ids, float* weights,
                               RoutingCounts* counts) {
  const double mean = static_cast<double>(rows) * gate_.top_k / experts_;
  const double most = std::max(1.0, std::ceil(options_.factor * mean));
  loads_.assign(static_cast<size_t>(experts_), 0);
  const auto room = [&](int32_t e) { return loads_[static_cast<size_t>(e)] < most; };
  for (int64_t r = 0; r < rows; ++r) {
    float* scores = logits + r * stride;
    Row row = {.weighed = WeighedScores(gate_, has_correction_bias, scores, scores + experts_),
               .selection = scores + experts_,
               .ids = ids + r * width_,
               .weights = weights + r * width_,
               .count = gate_.top_k};
    Ids taken;
    for (const int32_t i : Order(row.weights, row.count)) {
      int32_t expert = row.ids[i];
      if (!room(expert)) {
        row.changed = true;
        expert = NextBest(row, [&](int32_t e) {
          return room(e) && !row.Has(e) && std::ranges::count(taken, e) == 0;
        });
        ++(expert < 0 ? counts->dropped : counts->moved);
      }
      if (expert < 0) continue;
      ++loads_[static_cast<size_t>(expert)];
      taken.push_back(expert);
    }
    if (row.changed) {
      row.count = static_cast<int64_t>(taken.size());
      std::ranges::copy(taken, row.ids);
    }
    Finish(row);
    CountRow(row, counts);
  }
}

void RoutingPolicy::Count(const RoutingCounts& counts) {
  absl::MutexLock lock(&mutex_);
  counts_.Add(counts);
}

RoutingCounts RoutingPolicy::counts() const {
  absl::MutexLock lock(&mutex_);
  return counts_;
}

}  // namespace switchyard::router
