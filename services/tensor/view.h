// Non-owning views of matrices in memory. A view never outlives what it looks at.
#pragma once

#include <cstddef>
#include <cstdint>

#include "services/tensor/dtype.h"

namespace switchyard {

// How a weight matrix W of a linear map y = x·Wᵀ lies in memory.
enum class WeightLayout : uint8_t {
  kOutIn,  // [out, in], row-major: rows are dotted with x (Linear.weight of PyTorch)
  kInOut,  // [in, out], row-major: x scales rows and adds them (gpt-oss experts; W_k of absorbed
           // MLA)
};

// A weight matrix as it lies in the mapped checkpoint (or, where it was made at load, in a buffer).
struct WeightView {
  const std::byte* data = nullptr;
  DType dtype = DType::kBF16;  // kF32, kBF16, kF16, or blocks along `in` (kOutIn only)
  WeightLayout layout = WeightLayout::kOutIn;
  int64_t out = 0;     // width of y
  int64_t in = 0;      // width of x
  int64_t stride = 0;  // elements from one stored row to the next

  explicit operator bool() const { return data != nullptr; }
  size_t bytes() const { return static_cast<size_t>(BytesOf(dtype, out * in)); }
};

// A vector of weights (norm, bias, sinks).
struct VectorView {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  int64_t size = 0;

  explicit operator bool() const { return data != nullptr; }
};

}  // namespace switchyard
