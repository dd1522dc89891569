#include "services/expertwire/arithmetic.h"

#include "services/model/tensor_names.h"

namespace switchyard::expertwire {
namespace {

bool ClassMatters(const ModelSpec& spec, const checkpoint::TensorSource& source, int layer,
                  int expert) {
  const ExpertTensors t = ExpertTensorsOf(spec, layer, expert);
  const bool in_out = spec.experts.stacked && !spec.experts.stacked_out_in;
  for (const TensorSlice* slice : {&t.gate, &t.up, &t.gate_up, &t.down, &t.down_in_out}) {
    const checkpoint::TensorInfo* info = *slice ? source.Find(slice->tensor.name) : nullptr;
    const WeightLayout layout = in_out ? WeightLayout::kInOut : WeightLayout::kOutIn;
    if (info != nullptr && kernels::ClassMatters(info->dtype, layout)) return true;
  }
  return false;
}

}  // namespace

std::string ExpertArithmetic(const ModelSpec& spec, const checkpoint::TensorSource& source,
                             DType activations, kernels::Isa isa) {
  const std::string own(kernels::ArithmeticClass(activations, isa));
  if (activations == DType::kF32) return own;
  for (int layer = 0; layer < spec.num_layers(); ++layer) {
    if (!spec.layers[static_cast<size_t>(layer)].moe) continue;
    for (int expert = 0; expert < spec.experts.count; ++expert) {
      if (ClassMatters(spec, source, layer, expert)) return own;
    }
  }
  return "bf16";
}

}  // namespace switchyard::expertwire
