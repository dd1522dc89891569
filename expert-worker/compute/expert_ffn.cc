#include "expert-worker/compute/expert_ffn.h"

namespace switchyard::worker {

using kernels::MatMulTask;
using kernels::Rows;

ExpertFfn::ExpertFfn(const ModelSpec& spec, DType activations, const kernels::Compute& compute)
    : spec_(spec.experts), hidden_(spec.hidden), dtype_(activations), compute_(compute) {}

size_t ExpertFfn::bytes_a_pair() const { return static_cast<size_t>(hidden_) * sizeof(float); }

const float* ExpertFfn::Run(Rows x, const int32_t* gather, std::span<const ExpertRun> runs,
                            int64_t pairs) {
  y_.Reserve(static_cast<size_t>(pairs * hidden_) * sizeof(float));
  const size_t width = static_cast<size_t>(spec_.intermediate);
  const auto most = static_cast<int64_t>(kTileBytes / (2 * width * sizeof(float)));
  while (!runs.empty()) {
    size_t count = 1;
    int64_t n = runs.front().count;
    while (count < runs.size() && n + runs[count].count <= most) n += runs[count++].count;
    gate_up_.Reserve(static_cast<size_t>(n) * 2 * width * sizeof(float));
    inner_.Reserve(static_cast<size_t>(n) * width * SizeOf(dtype_));
    const std::span<const ExpertRun> tile = runs.first(count);
    GateUp(x, gather, tile);
    Activate(n);
    Down(tile);
    runs = runs.subspan(count);
  }
  return y_.as<float>();
}

void ExpertFfn::GateUp(Rows x, const int32_t* gather, std::span<const ExpertRun> runs) {
  tasks_.clear();
  const int64_t stride = 2 * int64_t{spec_.intermediate};
  for (const ExpertRun& run : runs) {
    MatMulTask task{.x = x, .rows = run.count, .gather = gather + run.first, .y_stride = stride};
    float* y = gate_up_.as<float>() + (run.first - runs.front().first) * stride;
    if (run.weights->gate_up) {
      task.w = run.weights->gate_up;
      task.bias = run.weights->gate_up_bias;
      task.y = y;
      tasks_.push_back(task);
      continue;
    }
    task.w = run.weights->gate;
    task.bias = run.weights->gate_bias;
    task.y = y;
    tasks_.push_back(task);
    task.w = run.weights->up;
    task.bias = run.weights->up_bias;
    task.y = y + spec_.intermediate;
    tasks_.push_back(task);
  }
  compute_.MatMul(tasks_);
}

void ExpertFfn::Activate(int64_t pairs) {
  const kernels::Compute::ActivationTask task{
      .gate_up = gate_up_.as<float>(),
      .stride = 2 * int64_t{spec_.intermediate},
      .rows = pairs,
      .width = spec_.intermediate,
      .interleaved = spec_.stacked,
      .clamped = spec_.activation == Activation::kClampedSwiglu,
      .limit = spec_.swiglu_limit,
      .alpha = spec_.swiglu_alpha,
      .out = {.data = inner_.data(), .dtype = dtype_, .stride = spec_.intermediate}};
  compute_.Activate(std::span(&task, 1));
}

void ExpertFfn::Down(std::span<const ExpertRun> runs) {
  tasks_.clear();
  const size_t row_bytes = static_cast<size_t>(spec_.intermediate) * SizeOf(dtype_);
  for (const ExpertRun& run : runs) {
    const auto first = static_cast<size_t>(run.first - runs.front().first);
    const std::byte* x = inner_.data() + first * row_bytes;
    tasks_.push_back({.x = {.data = x, .dtype = dtype_, .stride = spec_.intermediate},
                      .rows = run.count,
                      .w = run.weights->down,
                      .bias = run.weights->down_bias,
                      .y = y_.as<float>() + run.first * hidden_,
                      .y_stride = hidden_});
  }
  compute_.MatMul(tasks_);
}

}  // namespace switchyard::worker
