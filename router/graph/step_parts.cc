#include "router/graph/step_parts.h"

#include <algorithm>

namespace switchyard::router {

bool StartsSequence(const StepBatch& batch, int64_t row) {
  const size_t r = static_cast<size_t>(row);
  const auto& tables = batch.block_tables.front();
  return tables[r] != tables[r - 1] || batch.positions[r] != batch.positions[r - 1] + 1;
}

int64_t CutRow(const StepBatch& batch) {
  const int64_t rows = batch.rows();
  if (batch.micro_batches == 1) return rows;
  for (int64_t away = 0; away < rows; ++away) {
    for (const int64_t row : {rows / 2 - away, rows / 2 + away}) {
      if (row > 0 && row < rows && StartsSequence(batch, row)) return row;
    }
  }
  return rows;
}

std::pair<size_t, size_t> IndicesOf(const std::vector<int32_t>& rows, int64_t begin, int64_t end) {
  const auto first = std::lower_bound(rows.begin(), rows.end(), begin);
  const auto last = std::lower_bound(first, rows.end(), end);
  return {static_cast<size_t>(first - rows.begin()), static_cast<size_t>(last - rows.begin())};
}

int CountMoeLayers(const ModelSpec& spec) {
  return static_cast<int>(
      std::count_if(spec.layers.begin(), spec.layers.end(), [](const auto& l) { return l.moe; }));
}

}  // namespace switchyard::router
