// CUDA's threads on a CPU: runs the sources of services/kernels/cuda, compiled as C++, on machines
// without a GPU. For tests only: a thread of a block is a fiber, fibers change over where threads
// would meet, and a copy that was made asynchronous is done at the latest moment that its wait
// allows, so that who reads too early reads what was there before.
//
// What runs here is the arithmetic and the indices of a kernel; not its speed, and of its races
// only those that another order of threads between two barriers would show: blocks run their
// threads in ascending, descending and mixed order in turn.
//
// One launch at a time; a launch has ended when it returns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace simt {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Runs `thread` for every thread of every block.
void Launch(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& thread);

// ---- of the thread that runs ----
Dim3& ThreadIdx();
Dim3& BlockIdx();
Dim3& BlockDim();
Dim3& GridDim();
unsigned char* Shared();  // the block's, 1024-byte aligned; poisoned with NaN at its start
void SyncThreads();
// Every lane of the warp gives `bytes` and gets those of all 32, lane by lane.
void Exchange(const void* mine, size_t bytes, void* of_all);

// Copies of 16 bytes of which the first `bytes` come from `from`, the others are zeros.
void CopyAsync(void* to, const void* from, int bytes);
void CommitCopies();
void WaitCopies(int groups_left);

}  // namespace simt
