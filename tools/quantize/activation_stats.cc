#include "tools/quantize/activation_stats.h"

#include <cmath>

#include "router/graph/context.h"
#include "services/base/status.h"

namespace switchyard::quantize {

using router::Floats;

void ChannelStats::Add(const float* x, int64_t count, int64_t channels) {
  magnitude.resize(static_cast<size_t>(channels));
  square.resize(static_cast<size_t>(channels));
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t c = 0; c < channels; ++c) {
      const double value = x[r * channels + c];
      magnitude[static_cast<size_t>(c)] += std::fabs(value);
      square[static_cast<size_t>(c)] += value * value;
    }
  }
  rows += count;
}

ActivationStats::ActivationStats(ModelProbe& probe)
    : probe_(probe), backbone_(BackboneTensorsOf(probe.spec())) {
  layers_.resize(probe.spec().layers.size());
  for (Layer& layer : layers_) {
    layer.experts.resize(static_cast<size_t>(probe.spec().experts.count) + 1);
  }
}

void ActivationStats::Observe(const router::MoeJob& job) {
  const int64_t hidden = probe_.spec().hidden, top_k = probe_.spec().gate.top_k;
  float* x = Floats(input_, job.tokens * hidden);
  const int64_t row_bytes = job.x.stride * static_cast<int64_t>(SizeOf(job.x.dtype));
  for (int64_t r = 0; r < job.tokens; ++r) {
    kernels::ConvertToFloat(static_cast<const std::byte*>(job.x.data) + r * row_bytes, job.x.dtype,
                            hidden, x + r * hidden);
  }
  layers_[static_cast<size_t>(job.layer)].input.Add(x, job.tokens, hidden);
  const size_t experts = static_cast<size_t>(probe_.spec().experts.count);
  std::vector<std::vector<int32_t>> rows(experts + 1);
  for (int64_t i = 0; i < job.tokens * top_k; ++i) {
    rows[static_cast<size_t>(job.experts[i])].push_back(static_cast<int32_t>(i / top_k));
  }
  const MlpTensors& shared = backbone_.layers[static_cast<size_t>(job.layer)].mlp;
  for (int64_t r = 0; shared.gate && r < job.tokens; ++r) {
    rows[experts].push_back(static_cast<int32_t>(r));
  }
  for (size_t e = 0; e <= experts; ++e) {
    if (rows[e].empty() || !status_.ok()) continue;
    ChannelStats* out = &layers_[static_cast<size_t>(job.layer)].experts[e];
    if (e == experts) {
      status_ = ObserveMlp(job, shared.gate.name, shared.up.name, rows[e], out);
      continue;
    }
    const ExpertTensors t = ExpertTensorsOf(probe_.spec(), job.layer, static_cast<int>(e));
    status_ = ObserveMlp(job, t.gate.tensor.name, t.up.tensor.name, rows[e], out);
  }
}

absl::Status ActivationStats::ObserveMlp(const router::MoeJob& job, const std::string& gate_name,
                                         const std::string& up_name,
                                         const std::vector<int32_t>& rows, ChannelStats* out) {
  SY_ASSIGN_OR_RETURN(const auto gate_tensor, probe_.source().Get({.name = gate_name}));
  SY_ASSIGN_OR_RETURN(const auto up_tensor, probe_.source().Get({.name = up_name}));
  const WeightView gate = checkpoint::MatrixOf(gate_tensor), up = checkpoint::MatrixOf(up_tensor);
  const int64_t width = gate.out, count = static_cast<int64_t>(rows.size());
  float* gate_up = Floats(gate_up_, count * 2 * width);
  float* activated = Floats(activated_, count * width);
  kernels::MatMulTask task = {.x = job.x,
                              .rows = count,
                              .gather = rows.data(),
                              .w = gate,
                              .y = gate_up,
                              .y_stride = 2 * width};
  probe_.compute().MatMul(task);
  task.w = up;
  task.y += width;
  probe_.compute().MatMul(task);
  const kernels::Compute::ActivationTask activate = {.gate_up = gate_up,
                                                     .stride = 2 * width,
                                                     .rows = count,
                                                     .width = width,
                                                     .out = {activated, DType::kF32, width}};
  probe_.compute().Activate({&activate, 1});
  out->Add(activated, count, width);
  return absl::OkStatus();
}

}  // namespace switchyard::quantize
