// CUDA's threads on a CPU: runs the sources of services/kernels/cuda, compiled as C++, on machines
// without a GPU. For tests only: a thread of a block is a fiber, fibers change over where threads
// would meet, and a copy that was made asynchronous is done at the latest moment that its wait
// allows, so that who reads too early reads what was there before.
//
// Bulk copies are made at once by every other block, and by the others when no thread can go on
// without them: who gives their place away too early is found too.
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

// Copies of `size` bytes of which the first `bytes` come from `from`, the others are zeros.
void CopyAsync(void* to, const void* from, int bytes, int size = 16);
void CommitCopies();
void WaitCopies(int groups_left);

// Barriers that lie in shared memory: a phase ends when `arrivals` have come and as many bytes as
// were expected. To wait is for the end of the phase of that parity.
void BarrierInit(void* barrier, int arrivals);
void BarrierArrive(void* barrier, int bytes_expected);
void BarrierWait(void* barrier, int parity);
void CopyBulk(void* to, const void* from, int bytes, void* barrier);

// Work of four warps that is done in the background: each thread does its share when it waits.
// `what` is the same for all threads of the four, or somebody took a wrong turn.
void Defer(uint64_t what, std::function<void()> share);
void CommitDeferred();
void WaitDeferred(int groups_left);

}  // namespace simt
