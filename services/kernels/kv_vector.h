// The numbers of a vector of the KV cache one by one: the truth of what attention upcasts.
#pragma once

#include <cstring>

#include "services/tensor/kv_vector.h"

namespace switchyard::kernels {

// Number i of a vector of `dim` as kernels.h's StoreKv wrote it.
inline float LoadKv(const std::byte* vector, DType dtype, int64_t dim, int64_t i) {
  if (dtype == DType::kF32) return reinterpret_cast<const float*>(vector)[i];
  if (dtype == DType::kBF16) return ToFloat(reinterpret_cast<const bf16*>(vector)[i]);
  bf16 scale;
  std::memcpy(&scale, vector + dim + 2 * (i / kKvPiece), sizeof scale);
  const uint8_t bits = static_cast<uint8_t>(vector[i]);
  const float value =
      dtype == DType::kI8 ? static_cast<float>(static_cast<int8_t>(bits)) : ToFloat(f8e4m3{bits});
  return value * ToFloat(scale);
}

}  // namespace switchyard::kernels
