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

// How elements of four bits lie. A row is one of WeightLayout: the matrix is the same however it is
// packed.
enum class Packing : uint8_t {
  kRows,  // row by row
  // [columns / 8, rows] of int32: eight columns of a row, from the lowest nibble on.
  kGptq,
  // [columns, rows / 8] of int32: one column of eight rows, from the lowest nibble on rows
  // 0 2 4 6 1 3 5 7 (AutoAWQ's "gemm").
  kAwq,
};

// What lies beside the elements of a quantised matrix: w(r, k) = scale(r, k)·(c(r, k) - zero(r,
// k)). A row is a stored row of WeightLayout (an output of kOutIn), a column is along it.
struct WeightScales {
  const std::byte* data = nullptr;  // null: elements are what they say, or carry their own scales
  DType dtype = DType::kF32;        // kF32, kBF16, kF16; kU8 is 2^(x - 127)
  // Rows and columns that share a scale; elements from the scale of some to that of the next.
  int64_t group_rows = 1, group_columns = 1;
  int64_t row_stride = 0, column_stride = 0;
  // The view's first row among those that groups, and kGptq's and kAwq's words, count from.
  int64_t first_row = 0;

  // Zero points: null where they are 8 (of kI4) or 0 (of all others). Words of int32 hold those of
  // eight rows, in the order of the elements' packing; from the word of eight rows to that of the
  // next, and likewise of columns' groups. zero_offset is added to what is stored.
  const std::byte* zeros = nullptr;
  int64_t zero_row_stride = 0, zero_column_stride = 0;
  int zero_offset = 0;

  explicit operator bool() const { return data != nullptr; }
};

// A weight matrix as it lies in the mapped checkpoint (or, where it was made at load, in a buffer).
struct WeightView {
  const std::byte* data = nullptr;
  // kF32, kBF16, kF16; blocks along stored rows; with `scales` kI8, kI4, kE2M1 or kF8E4M3.
  DType dtype = DType::kBF16;
  WeightLayout layout = WeightLayout::kOutIn;
  int64_t out = 0;     // width of y
  int64_t in = 0;      // width of x
  int64_t stride = 0;  // elements from one stored row to the next; of kGptq and kAwq words
  Packing packing = Packing::kRows;
  WeightScales scales = {};

  explicit operator bool() const { return data != nullptr; }
  int64_t rows() const { return layout == WeightLayout::kOutIn ? out : in; }
  int64_t columns() const { return layout == WeightLayout::kOutIn ? in : out; }
  // Whether an element's value takes more than its own bits.
  bool quantised() const { return IsBlocked(dtype) || scales; }
  // Of the elements and what lies beside them.
  size_t bytes() const;
};

// Stored rows [first, first + count).
WeightView RowsOf(const WeightView& w, int64_t first, int64_t count);

// A vector of weights (norm, bias, sinks).
struct VectorView {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  int64_t size = 0;

  explicit operator bool() const { return data != nullptr; }
};

}  // namespace switchyard
