// What decides the bits of a result: two peers with one numerics id are bit-equal.
#pragma once

#include <string>
#include <string_view>

#include "services/tensor/dtype.h"

namespace switchyard::expertwire {

struct NumericsClass {
  std::string model_fingerprint;     // services/model/fingerprint.h
  DType activations = DType::kBF16;  // of GEMM inputs and wire rows
  std::string arithmetic;            // ExpertArithmetic (arithmetic.h)
};

// 16 hex digits over the class and the version of the reduction tree.
std::string NumericsId(std::string_view model_fingerprint, std::string_view dtype,
                       std::string_view arithmetic);
std::string NumericsId(const NumericsClass& numerics);

}  // namespace switchyard::expertwire
