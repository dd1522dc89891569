#include "services/tensor/view.h"

#include "services/base/ceil_div.h"
#include "services/base/check.h"

namespace switchyard {
namespace {}  // namespace

size_t WeightView::bytes() const {
  int64_t total = BytesOf(dtype, out * in);
  if (scales) {
    const int64_t groups = CeilDiv(columns(), scales.group_columns);
    total += CeilDiv(rows(), scales.group_rows) * groups * BytesOf(scales.dtype, 1);
    if (scales.zeros != nullptr) total += CeilDiv(rows(), 8) * groups * 4;
  }
  return static_cast<size_t>(total);
}

WeightView RowsOf(const WeightView& w, int64_t first, int64_t count) {
  SY_DCHECK(first >= 0 && count >= 0 && first + count <= w.rows());
  WeightView part = w;
  (w.layout == WeightLayout::kOutIn ? part.out : part.in) = count;
  if (w.packing == Packing::kRows) part.data += BytesOf(w.dtype, first * w.stride);
  part.scales.first_row += first;
  return part;
}

}  // namespace switchyard
