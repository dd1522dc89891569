// The rows of x that a call's products with blocked weights need, quantised once each, however many
// tasks and tiles read them. Internal to services/kernels.
#pragma once

#include <span>

#include "absl/container/inlined_vector.h"
#include "services/kernels/ops.h"
#include "services/kernels/thread_pool.h"

namespace switchyard::kernels {

// Lives in scratch of the calling thread, until its next call.
class QuantizedInputs {
 public:
  QuantizedInputs(std::span<const MatMulTask> tasks, const Ops& ops, ThreadPool& pool);

  // Of a task that IsInt8Dot.
  const QuantizedRows& of(size_t task) const { return sources_[source_of_[task]].rows; }

 private:
  // Tasks of the same rows: the projections of a layer, gate and up of an expert.
  struct Source {
    const MatMulTask* task;  // the one with the most rows
    int64_t first = 0;       // of all sources' rows
    QuantizedRows rows;
  };

  size_t Find(const MatMulTask& task);
  void Run(const Ops& ops, ThreadPool& pool, int64_t count) const;

  absl::InlinedVector<Source, 128> sources_;  // a run of each expert
  absl::InlinedVector<size_t, 256> source_of_;
};

}  // namespace switchyard::kernels
