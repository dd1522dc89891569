// Random quantised matrices of every form that kernels multiply.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "services/kernels/blocks.h"
#include "services/tensor/view.h"

namespace switchyard::kernels {

struct Form {
  const char* name;
  DType dtype;
  // Of those with scales beside them.
  DType scale_dtype = DType::kF32;
  int64_t group = 0;  // columns that share a scale; 0: all
  bool zeros = false;
  Packing packing = Packing::kRows;
  int zero_offset = 0;

  // Columns of which a row is a multiple, in units of `group` where there are several groups.
  int64_t unit() const {
    const int64_t block = BlockOf(dtype).elements;
    return IsBlocked(dtype) ? block : group > 0 ? group : kSubBlock;
  }
};

inline constexpr Form kForms[] = {
    {"Q8_0", DType::kQ8_0},
    {"Q4_0", DType::kQ4_0},
    {"MXFP4", DType::kMXFP4},
    {"Q4_K", DType::kQ4K},
    {"Q5_K", DType::kQ5K},
    {"Q6_K", DType::kQ6K},
    {"int8 a row", DType::kI8, DType::kBF16},
    {"int8 a row f32", DType::kI8, DType::kF32},
    {"int8 of 64", DType::kI8, DType::kF16, 64},
    {"int4 of 32", DType::kI4, DType::kBF16, 32},
    {"int4 of 128", DType::kI4, DType::kF16, 128},
    {"int4 a row", DType::kI4, DType::kF32},
    {"int4 of 64 with zeros", DType::kI4, DType::kBF16, 64, true},
    {"int4 a row with zeros", DType::kI4, DType::kF16, 0, true},
    {"e2m1", DType::kE2M1, DType::kU8, 32},
    {"GPTQ of 32", DType::kI4, DType::kF16, 32, true, Packing::kGptq, 1},
    {"GPTQ of 128", DType::kI4, DType::kF16, 128, true, Packing::kGptq},
    {"GPTQ a row", DType::kI4, DType::kBF16, 0, true, Packing::kGptq, 1},
    {"AWQ of 32", DType::kI4, DType::kF16, 32, true, Packing::kAwq},
    {"AWQ of 128", DType::kI4, DType::kBF16, 128, true, Packing::kAwq},
    {"AWQ a row", DType::kI4, DType::kF32, 0, true, Packing::kAwq},
};

class QuantisedMatrix {
 public:
  // Stored rows of `columns`, and `slack` units between them.
  QuantisedMatrix(const Form& form, WeightLayout layout, int64_t rows, int64_t columns,
                  int64_t slack, uint32_t seed)
      : random_(seed) {
    const bool out_in = layout == WeightLayout::kOutIn;
    view_ = {.dtype = form.dtype,
             .layout = layout,
             .out = out_in ? rows : columns,
             .in = out_in ? columns : rows,
             .stride = columns + slack * form.unit(),
             .packing = form.packing};
    if (form.packing != Packing::kRows) view_.stride = 0;
    MakeElements(form);
    if (!IsBlocked(form.dtype)) MakeScales(form);
    if (form.zeros) MakeZeros(form);
  }
  QuantisedMatrix(QuantisedMatrix&&) = default;

  const WeightView& view() const { return view_; }

 private:
  static int64_t Words(int64_t n) { return (n + 7) / 8; }

  // Any bytes are weights, if only the scales in blocks are ordinary numbers.
  void MakeElements(const Form& form) {
    const int64_t rows = view_.rows(), columns = view_.columns();
    int64_t bytes = BytesOf(form.dtype, rows * view_.stride);
    if (form.packing == Packing::kGptq) {
      view_.stride = (rows + 7) / 8 * 8;
      bytes = Words(columns) * view_.stride * 4;
    } else if (form.packing == Packing::kAwq) {
      view_.stride = Words(rows);
      bytes = columns * view_.stride * 4;
    }
    elements_.resize(static_cast<size_t>(bytes));
    for (std::byte& b : elements_) b = static_cast<std::byte>(random_());
    view_.data = elements_.data();
    if (!IsBlocked(form.dtype)) return;
    const auto scale = [&](std::byte* at) {
      const f16 d = ToF16(0.01f + 0.0001f * static_cast<float>(random_() % 256));
      std::memcpy(at, &d, sizeof(d));
    };
    for (int64_t at = 0; at < bytes; at += BlockOf(form.dtype).bytes) {
      std::byte* b = elements_.data() + at;
      if (form.dtype == DType::kMXFP4) {
        b[0] = static_cast<std::byte>(118 + random_() % 8);
      } else {
        scale(form.dtype == DType::kQ6K ? b + 208 : b);
        if (form.dtype == DType::kQ4K || form.dtype == DType::kQ5K) scale(b + 2);
      }
    }
  }

  void MakeScales(const Form& form) {
    WeightScales& s = view_.scales;
    s.dtype = form.scale_dtype;
    s.group_columns = form.group > 0 ? form.group : view_.columns();
    groups_ = view_.columns() / s.group_columns;
    const bool by_row = form.packing == Packing::kRows;
    const int64_t width = Words(view_.rows()) * 8;  // of a stored column
    s.row_stride = by_row ? groups_ : 1;
    s.column_stride = by_row ? 1 : width;
    scales_.resize(static_cast<size_t>(width * groups_) * SizeOf(s.dtype));
    for (int64_t i = 0; i < width * groups_; ++i) {
      const float d = 0.01f + 0.0001f * static_cast<float>(random_() % 256);
      std::byte* at = scales_.data() + static_cast<size_t>(i) * SizeOf(s.dtype);
      const f16 half = ToF16(d);
      const bf16 brain = ToBF16(d);
      if (s.dtype == DType::kF16) std::memcpy(at, &half, 2);
      if (s.dtype == DType::kBF16) std::memcpy(at, &brain, 2);
      if (s.dtype == DType::kF32) std::memcpy(at, &d, 4);
      if (s.dtype == DType::kU8) *at = static_cast<std::byte>(118 + random_() % 8);
    }
    s.data = scales_.data();
  }

  void MakeZeros(const Form& form) {
    WeightScales& s = view_.scales;
    const int64_t words = Words(view_.rows());
    zeros_.resize(static_cast<size_t>(words * groups_ * 4));
    for (std::byte& b : zeros_) b = static_cast<std::byte>(random_());
    s.zeros = zeros_.data();
    const bool by_row = form.packing == Packing::kRows;
    s.zero_row_stride = by_row ? groups_ : 1;
    s.zero_column_stride = by_row ? 1 : words;
    s.zero_offset = form.zero_offset;
  }

  std::mt19937 random_;
  WeightView view_;
  int64_t groups_ = 0;
  std::vector<std::byte> elements_, scales_, zeros_;
};

}  // namespace switchyard::kernels
