// The one compute pool of a process. Work is claimed in small pieces, so that a core taken away by
// a neighbour slows a step by its share and not by a convoy. Workers spin for a bounded time after
// each job and then sleep: an idle server uses no CPU.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"

namespace switchyard::kernels {

class ThreadPool {
 public:
  // `threads` in all, the caller of ParallelFor among them; 1 runs everything inline.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;
  // Time that callers have spent in ParallelFor since the start, in seconds. Any thread may ask.
  double seconds_inside() const;
  // Changes with every piece that is taken and every call that ends. Any thread may ask.
  uint64_t progress() const;

  // Calls body(begin, end) over disjoint pieces of [0, n) of at least `grain` items each (but the
  // last), and returns when all are done. Runs inline if n <= grain. One caller at a time; body
  // must not call ParallelFor. Results must not depend on the cut.
  void ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t, int64_t)> body);

 private:
  struct Shared;
  std::unique_ptr<Shared> shared_;
};

}  // namespace switchyard::kernels
