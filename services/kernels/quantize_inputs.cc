#include "services/kernels/quantize_inputs.h"

#include <algorithm>

#include "services/tensor/buffer.h"

namespace switchyard::kernels {
namespace {

constexpr double kValuesPerNs = 4;  // of one thread

int64_t RowsUsed(const MatMulTask& task) {
  if (task.gather == nullptr || task.rows == 0) return task.rows;
  return int64_t{*std::max_element(task.gather, task.gather + task.rows)} + 1;
}

}  // namespace

QuantizedInputs::QuantizedInputs(std::span<const MatMulTask> tasks, const Ops& ops,
                                 ThreadPool& pool) {
  for (const MatMulTask& task : tasks) {
    source_of_.push_back(IsInt8Dot(task) ? SourceOf(task) : 0);
  }
  int64_t bytes = 0, count = 0;
  for (const Source& s : sources_) bytes += s.count * QuantizedRows::RowBytes(s.rows.in);
  if (bytes == 0) return;
  thread_local AlignedBuffer buffer;
  buffer.Reserve(static_cast<size_t>(bytes));
  std::byte* at = buffer.data();
  for (Source& s : sources_) {
    s.rows.data = at;
    s.first = count;
    at += s.count * QuantizedRows::RowBytes(s.rows.in);
    count += s.count;
  }
  Run(ops, pool, count);
}

size_t QuantizedInputs::SourceOf(const MatMulTask& task) {
  // The newest first: tasks of one x mostly follow each other.
  size_t s = sources_.size();
  while (s > 0) {
    const Source& source = sources_[s - 1];
    if (source.x.data == task.x.data && source.x.stride == task.x.stride &&
        source.rows.in == task.w.in) {
      break;
    }
    --s;
  }
  if (s == 0) {
    sources_.push_back({.x = task.x, .rows = {.in = task.w.in}});
    s = sources_.size();
  }
  sources_[s - 1].count = std::max(sources_[s - 1].count, RowsUsed(task));
  return s - 1;
}

void QuantizedInputs::Run(const Ops& ops, ThreadPool& pool, int64_t count) const {
  double total_ns = 0;
  for (const Source& s : sources_) {
    total_ns += static_cast<double>(s.count * s.rows.in) / kValuesPerNs;
  }
  const double row_ns = total_ns / static_cast<double>(count);
  const int64_t grain = total_ns < kInlineNs ? count : 1 + static_cast<int64_t>(kItemNs / row_ns);
  pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
    const Source* s = &*(std::ranges::upper_bound(sources_, begin, {}, &Source::first) - 1);
    for (int64_t i = begin; i < end; ++i) {
      while (i - s->first >= s->count) ++s;
      const int64_t m = i - s->first;
      ops.quantize(static_cast<const bf16*>(s->x.data) + m * s->x.stride, s->rows.in,
                   s->rows.row(m));
    }
  });
}

}  // namespace switchyard::kernels
