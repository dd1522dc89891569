// The arithmetic that routed experts are computed with, as router and workers compare it.
#pragma once

#include <string>

#include "services/checkpoint/tensor_source.h"
#include "services/kernels/kernels.h"
#include "services/model/spec.h"

namespace switchyard::expertwire {

// kernels::ArithmeticClass or, where no weight of any expert is multiplied in the class's own way,
// "bf16": the same bits on every CPU. The headers of the checkpoint tell, not what is held here, so
// that every process that opens it says the same.
std::string ExpertArithmetic(const ModelSpec& spec, const checkpoint::TensorSource& source,
                             DType activations, kernels::Isa isa);

}  // namespace switchyard::expertwire
