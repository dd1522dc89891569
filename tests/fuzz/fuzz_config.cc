// config.json, and after a zero byte generation_config.json. Whatever is accepted must be safe to
// compute with: names, frequencies, sizes and sums never overflow or divide by zero.
#include <cmath>
#include <cstdint>
#include <string_view>

#include "services/base/check.h"
#include "services/model/fingerprint.h"
#include "services/model/memory_plan.h"
#include "services/model/rope_table.h"
#include "services/model/spec_from_hf.h"
#include "services/model/tensor_names.h"

namespace switchyard {
namespace {

void Use(const ModelSpec& spec) {
  const GateSpec& gate = spec.gate;
  SY_CHECK(spec.experts.count % gate.groups == 0);
  SY_CHECK(gate.top_k >= 1);
  SY_CHECK(gate.top_k <= gate.topk_groups * (spec.experts.count / gate.groups));
  SY_CHECK(spec.reduction_group(spec.experts.count - 1) == spec.num_reduction_groups() - 1);
  SY_CHECK(std::isfinite(spec.attention.softmax_scale) && spec.attention.softmax_scale > 0);
  for (double frequency : InverseFrequencies(spec.attention.rope)) {
    SY_CHECK(std::isfinite(frequency) && frequency >= 0);
  }
  RopeTable table(spec.attention.rope, 2048 < spec.max_position ? 2048 : spec.max_position);
  table.Reserve(1);
  SY_CHECK(std::isfinite(table.Cos(0)[0]));
  for (const TensorRef& tensor : AllTensors(BackboneTensorsOf(spec))) {
    for (int64_t size : tensor.shape) SY_CHECK(size > 0);
  }
  const ParameterCount count = CountParameters(spec);
  SY_CHECK(count.active <= count.total);
  SY_CHECK(KvBytesPerToken(spec, DType::kF32) > 0);
  SY_CHECK(!ModelFingerprint(spec, "").empty());
}

}  // namespace
}  // namespace switchyard

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t zero = text.find('\0');
  const auto spec = switchyard::SpecFromHf(
      text.substr(0, zero), zero == std::string_view::npos ? "" : text.substr(zero + 1));
  if (spec.ok()) switchyard::Use(*spec);
  return 0;
}
