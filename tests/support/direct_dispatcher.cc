#include "tests/support/direct_dispatcher.h"

#include <algorithm>
#include <utility>

#include "services/base/check.h"
#include "services/base/status.h"
#include "services/model/tensor_names.h"

namespace switchyard::test {
namespace {

using checkpoint::MappedTensor;
using checkpoint::TensorRange;
using checkpoint::TensorSource;

TensorRange RangeOf(const TensorSlice& slice) {
  return {.name = slice.tensor.name, .first = slice.first, .count = slice.count};
}

absl::StatusOr<WeightView> Matrix(const TensorSource& source, const TensorSlice& slice,
                                  WeightLayout layout) {
  if (!slice) return WeightView{};
  SY_ASSIGN_OR_RETURN(const MappedTensor t, source.Get(RangeOf(slice)));
  return checkpoint::MatrixOf(t, layout);
}

absl::StatusOr<VectorView> Vector(const TensorSource& source, const TensorSlice& slice) {
  if (!slice) return VectorView{};
  SY_ASSIGN_OR_RETURN(const MappedTensor t, source.Get(RangeOf(slice)));
  return VectorView{.data = t.data, .dtype = t.dtype, .size = t.shape.back()};
}

absl::StatusOr<DirectExperts::Expert> Bind(const TensorSource& source, const ExpertTensors& t) {
  DirectExperts::Expert expert;
  SY_ASSIGN_OR_RETURN(expert.gate, Matrix(source, t.gate, WeightLayout::kOutIn));
  SY_ASSIGN_OR_RETURN(expert.up, Matrix(source, t.up, WeightLayout::kOutIn));
  SY_ASSIGN_OR_RETURN(
      expert.gate_up,
      Matrix(source, t.gate_up, t.down_in_out ? WeightLayout::kInOut : WeightLayout::kOutIn));
  SY_ASSIGN_OR_RETURN(expert.down, t.down ? Matrix(source, t.down, WeightLayout::kOutIn)
                                          : Matrix(source, t.down_in_out, WeightLayout::kInOut));
  SY_ASSIGN_OR_RETURN(expert.gate_bias, Vector(source, t.gate_bias));
  SY_ASSIGN_OR_RETURN(expert.up_bias, Vector(source, t.up_bias));
  SY_ASSIGN_OR_RETURN(expert.gate_up_bias, Vector(source, t.gate_up_bias));
  SY_ASSIGN_OR_RETURN(expert.down_bias, Vector(source, t.down_bias));
  return expert;
}

}  // namespace

absl::StatusOr<DirectExperts> DirectExperts::Load(const ModelSpec& spec, TensorSource& source) {
  std::vector<TensorRange> ranges;
  for (int layer = 0; layer < spec.num_layers(); ++layer) {
    if (!spec.layers[static_cast<size_t>(layer)].moe) continue;
    for (int e = 0; e < spec.experts.count; ++e) {
      for (const TensorSlice& slice : AllSlices(ExpertTensorsOf(spec, layer, e))) {
        ranges.push_back(RangeOf(slice));
      }
    }
  }
  SY_RETURN_IF_ERROR(source.Map(ranges));
  DirectExperts experts;
  experts.layers.resize(spec.layers.size());
  for (int layer = 0; layer < spec.num_layers(); ++layer) {
    if (!spec.layers[static_cast<size_t>(layer)].moe) continue;
    for (int e = 0; e < spec.experts.count; ++e) {
      SY_ASSIGN_OR_RETURN(Expert expert, Bind(source, ExpertTensorsOf(spec, layer, e)));
      experts.layers[static_cast<size_t>(layer)].push_back(expert);
    }
  }
  return experts;
}

DirectDispatcher::DirectDispatcher(const ModelSpec& spec, const DirectExperts& experts,
                                   const kernels::Compute& compute, DType wire,
                                   int polls_until_done)
    : spec_(spec),
      experts_(experts),
      compute_(compute),
      wire_(wire),
      polls_until_done_(polls_until_done) {}

router::MoeTicket DirectDispatcher::Start(const router::MoeJob& job) {
  SY_CHECK(job.x.dtype == wire_);
  jobs_[next_ticket_] = {job, polls_until_done_};
  if (delay_ > absl::ZeroDuration()) jobs_[next_ticket_].back = absl::Now() + delay_;
  most_in_flight_ = std::max(most_in_flight_, in_flight());
  return next_ticket_++;
}

bool DirectDispatcher::Finished(router::MoeTicket ticket) {
  const auto it = jobs_.find(ticket);
  SY_CHECK(it != jobs_.end());
  if (it->second.polls_left-- > 0) return false;
  if (delay_ > absl::ZeroDuration() && absl::Now() < it->second.back) return false;
  Compute(it->second.job);
  jobs_.erase(it);
  return true;
}

void DirectDispatcher::Wait(absl::Time until) {
  if (delay_ == absl::ZeroDuration()) return;
  for (const auto& [ticket, job] : jobs_) until = std::min(until, job.back);
  absl::SleepFor(until - absl::Now());
}

void DirectDispatcher::Compute(const router::MoeJob& job) {
  const int64_t pairs = job.tokens * job.top_k;
  const int64_t width = spec_.experts.intermediate, hidden = spec_.hidden;
  SortByExpert(job);
  gate_up_.Reserve(static_cast<size_t>(pairs * 2 * width) * sizeof(float));
  activated_.Reserve(static_cast<size_t>(pairs * width) * SizeOf(wire_));
  y_.Reserve(static_cast<size_t>(pairs * hidden) * sizeof(float));
  GateUp(job, gate_up_.as<float>());
  Activate(gate_up_.as<float>(), {activated_.data(), wire_, width});
  Down(job, {activated_.data(), wire_, width}, y_.as<float>());
  Combine(job, y_.as<float>());
  if (lose_row_ >= 0 && lose_row_ < job.tokens) job.lost[lose_row_] = 1;
  LoseRowsOf(job);
}

void DirectDispatcher::LoseExperts(int layer, const std::vector<int>& experts, bool known) {
  Lost& lost = lost_[layer];
  lost.known = known;
  lost.experts.assign(static_cast<size_t>(spec_.experts.count), 0);
  for (const int e : experts) lost.experts[static_cast<size_t>(e)] = 1;
}

std::span<const uint8_t> DirectDispatcher::Gone(int layer) {
  const auto at = lost_.find(layer);
  if (at == lost_.end() || !at->second.known) return {};
  return at->second.experts;
}

void DirectDispatcher::LoseRowsOf(const router::MoeJob& job) {
  const auto at = lost_.find(job.layer);
  if (at == lost_.end()) return;
  for (int64_t pair = 0; pair < job.tokens * job.top_k; ++pair) {
    const int32_t e = job.experts[pair];
    if (e == router::kNoExpert || !at->second.experts[static_cast<size_t>(e)]) continue;
    std::fill_n(job.out + pair / job.top_k * spec_.hidden, spec_.hidden, 0.0f);
    job.lost[pair / job.top_k] = 1;
    at->second.known = true;
  }
}

void DirectDispatcher::SortByExpert(const router::MoeJob& job) {
  const size_t pairs = static_cast<size_t>(job.tokens * job.top_k);
  first_row_.assign(static_cast<size_t>(spec_.experts.count) + 1, 0);
  for (size_t p = 0; p < pairs; ++p) {
    if (job.experts[p] != router::kNoExpert) ++first_row_[static_cast<size_t>(job.experts[p]) + 1];
  }
  for (size_t e = 1; e < first_row_.size(); ++e) first_row_[e] += first_row_[e - 1];
  tokens_.resize(static_cast<size_t>(first_row_.back()));
  row_of_pair_.resize(pairs);
  std::vector<int32_t> next(first_row_.begin(), first_row_.end() - 1);
  for (size_t p = 0; p < pairs; ++p) {
    if (job.experts[p] == router::kNoExpert) continue;
    const int32_t row = next[static_cast<size_t>(job.experts[p])]++;
    tokens_[static_cast<size_t>(row)] = static_cast<int32_t>(p) / job.top_k;
    row_of_pair_[p] = row;
  }
}

void DirectDispatcher::GateUp(const router::MoeJob& job, float* gate_up) {
  const int64_t width = spec_.experts.intermediate;
  tasks_.clear();
  for (size_t e = 0; e + 1 < first_row_.size(); ++e) {
    const int64_t first = first_row_[e], rows = first_row_[e + 1] - first;
    if (rows == 0) continue;
    const DirectExperts::Expert& expert = experts_.layers[static_cast<size_t>(job.layer)][e];
    kernels::MatMulTask task = {.x = job.x,
                                .rows = rows,
                                .gather = tokens_.data() + first,
                                .w = expert.gate_up ? expert.gate_up : expert.gate,
                                .bias = expert.gate_up ? expert.gate_up_bias : expert.gate_bias,
                                .y = gate_up + first * 2 * width,
                                .y_stride = 2 * width};
    tasks_.push_back(task);
    if (expert.gate_up) continue;
    task.w = expert.up;
    task.bias = expert.up_bias;
    task.y += width;
    tasks_.push_back(task);
  }
  compute_.MatMul(tasks_);
}

void DirectDispatcher::Activate(const float* gate_up, kernels::MutableRows out) {
  const ExpertSpec& e = spec_.experts;
  const kernels::Compute::ActivationTask task = {
      .gate_up = gate_up,
      .stride = 2 * e.intermediate,
      .rows = static_cast<int64_t>(tokens_.size()),
      .width = e.intermediate,
      .interleaved = e.stacked,
      .clamped = e.activation == Activation::kClampedSwiglu,
      .limit = e.swiglu_limit,
      .alpha = e.swiglu_alpha,
      .out = out};
  compute_.Activate({&task, 1});
}

void DirectDispatcher::Down(const router::MoeJob& job, const kernels::Rows& activated, float* y) {
  const int64_t row_bytes = activated.stride * static_cast<int64_t>(SizeOf(activated.dtype));
  tasks_.clear();
  for (size_t e = 0; e + 1 < first_row_.size(); ++e) {
    const int64_t first = first_row_[e], rows = first_row_[e + 1] - first;
    if (rows == 0) continue;
    const DirectExperts::Expert& expert = experts_.layers[static_cast<size_t>(job.layer)][e];
    tasks_.push_back({.x = {static_cast<const std::byte*>(activated.data) + first * row_bytes,
                            activated.dtype, activated.stride},
                      .rows = rows,
                      .w = expert.down,
                      .bias = expert.down_bias,
                      .y = y + first * spec_.hidden,
                      .y_stride = spec_.hidden});
  }
  compute_.MatMul(tasks_);
}

void DirectDispatcher::Combine(const router::MoeJob& job, const float* y) {
  const int64_t hidden = spec_.hidden, top_k = job.top_k;
  group_sums_.Reserve(static_cast<size_t>(hidden) * 2 * sizeof(float));
  float* sum = group_sums_.as<float>();
  float* rounded = sum + hidden;
  for (int64_t token = 0; token < job.tokens; ++token) {
    const int32_t* experts = job.experts + token * top_k;
    float* out = job.out + token * hidden;
    std::fill_n(out, hidden, 0.0f);
    for (int64_t i = 0; i < top_k && experts[i] != router::kNoExpert;) {
      const int group = spec_.reduction_group(experts[i]);
      std::fill_n(sum, hidden, 0.0f);
      for (; i < top_k && experts[i] != router::kNoExpert &&
             spec_.reduction_group(experts[i]) == group;
           ++i) {
        const int64_t pair = token * top_k + i;
        kernels::AddScaled(sum, y + row_of_pair_[static_cast<size_t>(pair)] * hidden,
                           job.weights[pair], hidden);
      }
      if (wire_ == DType::kBF16) {
        // The second half of the scratch holds the rounded row on its way back to fp32.
        kernels::Convert(sum, hidden, wire_, rounded);
        kernels::ConvertToFloat(rounded, wire_, hidden, sum);
      }
      kernels::Add(out, sum, hidden);
    }
  }
}

}  // namespace switchyard::test
