// What becomes of each tensor of a checkpoint.
#pragma once

#include <string>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "services/checkpoint/tensor_source.h"
#include "services/model/spec.h"
#include "tools/quantize/matrix_codec.h"

namespace switchyard::quantize {

struct Role {
  // kGate, kUp and kDown are of an MLP. All from kAttention on are quantised.
  enum class Kind { kCopy, kMlpNorm, kRouterGate, kAttention, kGate, kUp, kDown };

  Kind kind = Kind::kCopy;
  int layer = -1;
  int expert = -1;  // of kGate, kUp, kDown; -1: of the dense or shared MLP

  bool quantised() const { return kind >= Kind::kAttention; }
};

// By name; what is missing is kCopy.
using Roles = std::unordered_map<std::string, Role>;

// UNIMPLEMENTED where experts are stacked in one tensor (gpt-oss).
absl::StatusOr<Roles> RolesOf(const ModelSpec& spec, Scheme scheme);

// The group size of int4: `wanted`, or the largest that all rows are multiples of if that is 0.
// INVALID_ARGUMENT names a matrix whose rows are not, for int8 and fp8 too (groups of 32).
absl::StatusOr<int64_t> GroupFor(const Roles& roles, const checkpoint::TensorSource& source,
                                 Scheme scheme, int wanted);

}  // namespace switchyard::quantize
