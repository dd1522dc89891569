#include "tools/quantize/roles.h"

#include "services/base/status.h"
#include "services/model/tensor_names.h"

namespace switchyard::quantize {

absl::StatusOr<Roles> RolesOf(const ModelSpec& spec, Scheme scheme) {
  if (spec.experts.stacked) {
    return Unimplemented("{}: experts that are stacked in one tensor cannot be quantised",
                         spec.architecture);
  }
  Roles roles;
  const auto add = [&](const TensorRef& tensor, Role role) {
    if (tensor) roles[tensor.name] = role;
  };
  using Kind = Role::Kind;
  const bool attention = scheme == Scheme::kInt8 || scheme == Scheme::kFp8;
  const BackboneTensors backbone = BackboneTensorsOf(spec);
  for (int layer = 0; layer < spec.num_layers(); ++layer) {
    const LayerTensors& t = backbone.layers[static_cast<size_t>(layer)];
    const AttentionTensors& a = t.attention;
    for (const TensorRef& tensor : {a.q, a.k, a.v, a.o, a.q_a, a.q_b, a.kv_a, a.kv_b}) {
      if (attention) add(tensor, {Kind::kAttention, layer});
    }
    add(t.post_attention_norm, {Kind::kMlpNorm, layer});
    add(t.mlp.gate, {Kind::kGate, layer});
    add(t.mlp.up, {Kind::kUp, layer});
    add(t.mlp.down, {Kind::kDown, layer});
    if (!spec.layers[static_cast<size_t>(layer)].moe) continue;
    add(t.gate.weight, {Kind::kRouterGate, layer});
    for (int e = 0; e < spec.experts.count; ++e) {
      const ExpertTensors expert = ExpertTensorsOf(spec, layer, e);
      add(expert.gate.tensor, {Kind::kGate, layer, e});
      add(expert.up.tensor, {Kind::kUp, layer, e});
      add(expert.down.tensor, {Kind::kDown, layer, e});
    }
  }
  return roles;
}

absl::StatusOr<int64_t> GroupFor(const Roles& roles, const checkpoint::TensorSource& source,
                                 Scheme scheme, int wanted) {
  const bool grouped = scheme == Scheme::kInt4 || scheme == Scheme::kInt4Awq;
  if (wanted != 0 && (!grouped || (wanted != 32 && wanted != 64 && wanted != 128))) {
    return InvalidArgument("group size {}: int4 has groups of 32, 64 or 128, others have none",
                           wanted);
  }
  int64_t group = wanted != 0 ? wanted : (grouped ? 128 : 32);
  for (const checkpoint::TensorInfo& tensor : source.tensors()) {
    const auto role = roles.find(tensor.name);
    if (role == roles.end() || !role->second.quantised()) continue;
    if (tensor.shape.size() != 2) {
      return InvalidArgument("tensor {}: has {} dimensions, expected a matrix", tensor.name,
                             tensor.shape.size());
    }
    while (wanted == 0 && group > 32 && tensor.shape[1] % group != 0) group /= 2;
    if (tensor.shape[1] % group != 0) {
      return InvalidArgument("tensor {}: rows of {} values are not multiples of {}", tensor.name,
                             tensor.shape[1], group);
    }
  }
  return group;
}

}  // namespace switchyard::quantize
