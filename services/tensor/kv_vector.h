// How the KV cache keeps a vector: a key or value of one head, or MLA's [latent | k_rope]. A
// token's record in a layer is its vectors one after the other.
//
//   kF32, kBF16     the numbers, rounded to nearest even
//   kI8, kF8E4M3    a byte of each number, then for each piece of kKvPiece of them (the last may be
//                   shorter) a bf16 scale, unaligned. With m the largest magnitude of a piece, its
//                   scale is m / 127 or m / 448, rounded to bf16, and a number x is kept as
//                   x / scale, rounded to nearest even. m < 2^-100: scale and bytes are zero; a NaN
//                   or an infinity: the scale is NaN.
//
// So what is kept is a function of the vector alone.
#pragma once

#include <cstdint>

#include "services/base/ceil_div.h"
#include "services/base/check.h"
#include "services/tensor/dtype.h"

namespace switchyard {

inline constexpr int64_t kKvPiece = 32;

inline bool IsKvQuantised(DType dtype) { return dtype == DType::kI8 || dtype == DType::kF8E4M3; }

// Bytes of a vector of `dim` numbers.
inline int64_t KvVectorBytes(DType dtype, int64_t dim) {
  if (dtype == DType::kF32) return 4 * dim;
  if (dtype == DType::kBF16) return 2 * dim;
  SY_CHECK(IsKvQuantised(dtype));
  return dim + 2 * CeilDiv(dim, kKvPiece);
}

}  // namespace switchyard
