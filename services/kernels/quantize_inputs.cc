#include "services/kernels/quantize_inputs.h"

#include <algorithm>

#include "services/tensor/buffer.h"

namespace switchyard::kernels {
namespace {

constexpr double kValuesPerNs = 4;   // of one thread
constexpr int64_t kRowsBehind = 15;  // that Ops::mat_mul_int8 may read

}  // namespace

QuantizedInputs::QuantizedInputs(std::span<const MatMulTask> tasks, const Ops& ops,
                                 ThreadPool& pool) {
  for (const MatMulTask& task : tasks) source_of_.push_back(IsInt8Dot(task) ? Find(task) : 0);
  int64_t bytes = 0, widest = 0, count = 0;
  for (const Source& s : sources_) {
    const int64_t row_bytes = QuantizedRows::RowBytes(s.rows.in);
    bytes += s.task->rows * row_bytes;
    widest = std::max(widest, row_bytes);
  }
  if (bytes == 0) return;
  thread_local AlignedBuffer buffer;
  buffer.Reserve(static_cast<size_t>(bytes + kRowsBehind * widest));
  std::byte* at = buffer.data();
  for (Source& s : sources_) {
    s.rows.data = at;
    s.first = count;
    at += s.task->rows * QuantizedRows::RowBytes(s.rows.in);
    count += s.task->rows;
  }
  Run(ops, pool, count);
}

size_t QuantizedInputs::Find(const MatMulTask& task) {
  // The newest first: tasks of the same rows mostly follow each other.
  for (size_t s = sources_.size(); s > 0; --s) {
    Source& source = sources_[s - 1];
    const MatMulTask& other = *source.task;
    if (other.x.data != task.x.data || other.x.stride != task.x.stride ||
        other.gather != task.gather || other.w.in != task.w.in) {
      continue;
    }
    if (other.rows < task.rows) source.task = &task;
    return s - 1;
  }
  sources_.push_back({.task = &task, .rows = {.in = task.w.in}});
  return sources_.size() - 1;
}

void QuantizedInputs::Run(const Ops& ops, ThreadPool& pool, int64_t count) const {
  double total_ns = 0;
  for (const Source& s : sources_) {
    total_ns += static_cast<double>(s.task->rows * s.rows.in) / kValuesPerNs;
  }
  const double row_ns = total_ns / static_cast<double>(count);
  const int64_t grain = total_ns < kInlineNs ? count : 1 + static_cast<int64_t>(kItemNs / row_ns);
  pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
    const Source* s = &*(std::ranges::upper_bound(sources_, begin, {}, &Source::first) - 1);
    for (int64_t i = begin; i < end; ++i) {
      while (i - s->first >= s->task->rows) ++s;
      const int64_t m = i - s->first;
      ops.quantize(reinterpret_cast<const bf16*>(RowAt(*s->task, m)), s->rows.in, s->rows.row(m));
    }
  });
}

}  // namespace switchyard::kernels
