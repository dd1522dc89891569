#include "tools/quantize/awq_plan.h"

#include <algorithm>

#include "services/base/status.h"
#include "services/model/tensor_names.h"
#include "tools/quantize/awq.h"

namespace switchyard::quantize {
namespace {

constexpr int64_t kSampleRows = 64;  // of a matrix
constexpr int kSampleExperts = 16;   // that share a scale

// Appends some rows of a matrix, evenly spread.
absl::Status Sample(const checkpoint::TensorSource& source, const std::string& name,
                    std::vector<float>* out) {
  SY_ASSIGN_OR_RETURN(const checkpoint::MappedTensor tensor, source.Get({.name = name}));
  const int64_t all = tensor.shape[0], in = tensor.shape[1], rows = std::min(all, kSampleRows);
  const int64_t row_bytes = in * static_cast<int64_t>(SizeOf(tensor.dtype));
  for (int64_t r = 0; r < rows; ++r) {
    out->resize(out->size() + static_cast<size_t>(in));
    kernels::ConvertToFloat(tensor.data + r * all / rows * row_bytes, tensor.dtype, in,
                            out->data() + out->size() - in);
  }
  return absl::OkStatus();
}

// The norm's new weight, and what its output is then really divided by.
absl::Status FoldIntoNorm(const checkpoint::TensorSource& source, const std::string& name,
                          AwqLayer& layer) {
  SY_ASSIGN_OR_RETURN(const checkpoint::MappedTensor tensor, source.Get({.name = name}));
  const auto n = static_cast<int64_t>(layer.input.size());
  std::vector<float> weight(layer.input.size());
  kernels::ConvertToFloat(tensor.data, tensor.dtype, n, weight.data());
  layer.norm.resize(weight.size());
  for (size_t i = 0; i < weight.size(); ++i) layer.norm[i] = weight[i] / layer.input[i];
  std::vector<std::byte> stored(weight.size() * SizeOf(tensor.dtype));
  kernels::Convert(layer.norm.data(), n, tensor.dtype, stored.data());
  kernels::ConvertToFloat(stored.data(), tensor.dtype, n, layer.norm.data());
  for (size_t i = 0; i < weight.size(); ++i) {
    const bool divides = layer.norm[i] != 0 && weight[i] != 0;
    layer.input[i] = divides ? weight[i] / layer.norm[i] : 1.0f;
    if (!divides) layer.norm[i] = weight[i];
  }
  return absl::OkStatus();
}

absl::StatusOr<AwqLayer> PlanLayer(ModelProbe& probe, const ActivationStats& stats, int layer,
                                   const LayerTensors& tensors, int64_t group) {
  const ModelSpec& spec = probe.spec();
  const checkpoint::TensorSource& source = probe.source();
  kernels::ThreadPool& pool = probe.compute().pool();
  AwqLayer out;
  std::vector<float> sample;
  const int step = std::max(1, spec.experts.count / kSampleExperts);
  for (int e = 0; e < spec.experts.count; e += step) {
    const ExpertTensors expert = ExpertTensorsOf(spec, layer, e);
    SY_RETURN_IF_ERROR(Sample(source, expert.gate.tensor.name, &sample));
    SY_RETURN_IF_ERROR(Sample(source, expert.up.tensor.name, &sample));
  }
  if (tensors.mlp.gate) {
    SY_RETURN_IF_ERROR(Sample(source, tensors.mlp.gate.name, &sample));
    SY_RETURN_IF_ERROR(Sample(source, tensors.mlp.up.name, &sample));
  }
  out.input = SearchAwqScale(sample, spec.hidden, group, stats.input(layer), pool);
  SY_RETURN_IF_ERROR(FoldIntoNorm(source, tensors.post_attention_norm.name, out));
  out.input_importance = ImportanceOf(stats.input(layer), out.input);
  for (int e = 0; e <= spec.experts.count; ++e) {
    const bool shared = e == spec.experts.count;
    if (shared && !tensors.mlp.down) break;
    const TensorRef down = shared ? tensors.mlp.down : ExpertTensorsOf(spec, layer, e).down.tensor;
    sample.clear();
    SY_RETURN_IF_ERROR(Sample(source, down.name, &sample));
    const ChannelStats& of = stats.down(layer, e);
    out.down.push_back(SearchAwqScale(sample, down.shape[1], group, of, pool));
    out.down_importance.push_back(ImportanceOf(of, out.down.back()));
  }
  return out;
}

}  // namespace

absl::StatusOr<std::map<int, AwqLayer>> PlanAwq(ModelProbe& probe, const ActivationStats& stats,
                                                int64_t group) {
  const BackboneTensors backbone = BackboneTensorsOf(probe.spec());
  std::map<int, AwqLayer> plan;
  for (int layer = 0; layer < probe.spec().num_layers(); ++layer) {
    if (!probe.spec().layers[static_cast<size_t>(layer)].moe) continue;
    SY_ASSIGN_OR_RETURN(plan[layer], PlanLayer(probe, stats, layer,
                                               backbone.layers[static_cast<size_t>(layer)], group));
  }
  return plan;
}

}  // namespace switchyard::quantize
