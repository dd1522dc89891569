// How each scheme keeps a matrix: its tensors in the file and the numbers in them.
//
//   int8       compressed-tensors "int-quantized": X.weight int8 [out, in], X.weight_scale bf16
//              [out, 1]; activations are quantised as they come (W8A8)
//   int4       compressed-tensors "pack-quantized": X.weight_packed int32 [out, in / 8], eight
//              numbers plus 8 from the lowest nibble on, X.weight_scale bf16 [out, in / group],
//              X.weight_shape
//   fp8        DeepSeek-V3's: X.weight E4M3 [out, in], X.weight_scale_inv float32, one for each
//              block of 128 × 128
//
// int4's scale of a group is the one of some candidates that loses least, each column's error
// counted by its importance.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "services/kernels/thread_pool.h"
#include "services/tensor/dtype.h"

namespace switchyard::quantize {

enum class Scheme { kInt8, kInt4, kInt4Awq, kFp8 };

struct Format {
  Scheme scheme = Scheme::kInt8;
  int64_t group = 0;  // columns that share a scale; of int4
};

struct StoredTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;

  uint64_t bytes() const;
};

// The tensors that "X.weight" [out, in] becomes.
std::vector<StoredTensor> StoredAs(const Format& format, std::string_view weight, int64_t out,
                                   int64_t in);

struct MatrixTask {
  const float* w = nullptr;  // [out, in]
  int64_t out = 0, in = 0;
  const float* importance = nullptr;    // [in], >= 0; null: all alike
  const float* column_scale = nullptr;  // [in], that w was multiplied by; null: none
};

// Sums of squares, as w was before column_scale.
struct ErrorSum {
  double error = 0, norm = 0;

  void Add(const ErrorSum& other) { error += other.error, norm += other.norm; }
  double Relative() const;  // root of the ratio; 0 of nothing
};

// data[i] are the bytes of StoredAs()[i]. The same for any number of threads.
ErrorSum Encode(const Format& format, const MatrixTask& task, kernels::ThreadPool& pool,
                std::vector<std::vector<std::byte>>* data);

// The scale of `n` numbers without a search, as int4 has it.
float PlainInt4Scale(const float* w, int64_t n);

// What w / scale becomes, in [-8, 7].
inline float RoundInt4(float ratio) {
  constexpr float kMagic = 0x1.8p23f;  // adding it rounds to an integer
  const float q = (ratio + kMagic) - kMagic;
  return q < -8.0f ? -8.0f : (q > 7.0f ? 7.0f : q);
}

}  // namespace switchyard::quantize
