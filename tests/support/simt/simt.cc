#include "tests/support/simt/simt.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <unordered_map>
#include <vector>

namespace simt {
namespace {

constexpr size_t kStackBytes = size_t{128} << 10;
constexpr unsigned kWarp = 32, kWarpgroup = 128;
constexpr size_t kExchangeMax = 128;

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "simt: %s\n", what);
  std::abort();
}

struct Copy {
  void* to;
  const void* from;
  int bytes, size;
};

// In shared memory, as who uses it says; its state is kept beside it.
struct Barrier {
  int arrivals = 0, missing = 0;
  int64_t bytes = 0;         // expected and not there
  int parity = 0;            // of the phase that has not ended
  std::vector<Copy> copies;  // on their way
};

enum class State { kReady, kAtBarrier, kAtExchange, kAtWarpgroup, kAtPhase, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<std::byte[]> stack = std::make_unique<std::byte[]>(kStackBytes);
  State state = State::kReady;
  Dim3 index;
  std::vector<Copy> open;                 // not committed
  std::vector<std::vector<Copy>> groups;  // committed, the oldest first
  unsigned char mine[kExchangeMax];
  Barrier* waits_for = nullptr;
  int waits_for_parity = 0;
  uint64_t deferred_what = 0;  // of all that was deferred, one after the other
  std::vector<std::function<void()>> deferred;
  std::vector<std::vector<std::function<void()>>> deferred_groups;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<unsigned char> shared;
  unsigned char* aligned = nullptr;
  const std::function<void()>* thread = nullptr;
  ucontext_t scheduler;
  Fiber* running = nullptr;
  std::unordered_map<const void*, Barrier> barriers;
  bool copies_at_once = false;
  Dim3 thread_index, block_index, block_dim, grid_dim;
};

Block block;

void Entry() {
  (*block.thread)();
  for (const auto& group : block.running->groups) {
    if (!group.empty()) Die("a thread ended with copies that it did not wait for");
  }
  if (!block.running->open.empty()) Die("a thread ended with copies that it did not commit");
  block.running->groups.clear();
  if (!block.running->deferred_groups.empty() || !block.running->deferred.empty()) {
    Die("a thread ended with work of its warpgroup that it did not wait for");
  }
  block.running->state = State::kDone;
  swapcontext(&block.running->context, &block.scheduler);
}

void Yield(State state) {
  Fiber& self = *block.running;
  self.state = state;
  swapcontext(&self.context, &block.scheduler);
}

void Resume(Fiber& fiber) {
  block.running = &fiber;
  block.thread_index = fiber.index;
  swapcontext(&block.scheduler, &fiber.context);
}

void Begin(Fiber& fiber, unsigned i) {
  fiber.state = State::kReady;
  fiber.deferred_what = 0;
  const Dim3 d = block.block_dim;
  fiber.index = Dim3(i % d.x, i / d.x % d.y, i / d.x / d.y);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, &Entry, 0);
}

// Whether all of [first, last) that have not ended are in `state`; then they go on.
bool Release(size_t first, size_t last, State state) {
  bool any = false;
  for (size_t i = first; i < last; ++i) {
    if (block.fibers[i].state == State::kDone) continue;
    if (block.fibers[i].state != state) return false;
    any = true;
  }
  for (size_t i = first; i < last && any; ++i) {
    if (block.fibers[i].state == state) block.fibers[i].state = State::kReady;
  }
  return any;
}

void Do(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    if (copy.bytes > 0) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
    std::memset(static_cast<unsigned char*>(copy.to) + copy.bytes, 0,
                static_cast<size_t>(copy.size - copy.bytes));
  }
}

void EndPhaseIfAllCame(Barrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.arrivals;
  barrier.parity ^= 1;
}

// Whether a thread can go on that waited for a phase.
bool ReleaseOfPhases() {
  bool any = false;
  for (Fiber& fiber : block.fibers) {
    if (fiber.state != State::kAtPhase || fiber.waits_for->parity == fiber.waits_for_parity) {
      continue;
    }
    fiber.state = State::kReady;
    any = true;
  }
  return any;
}

// The copies of one barrier that somebody waits for.
bool FinishCopies(const std::vector<size_t>& order) {
  for (const size_t i : order) {
    if (block.fibers[i].state != State::kAtPhase) continue;
    Barrier& barrier = *block.fibers[i].waits_for;
    if (barrier.copies.empty()) continue;
    Do(barrier.copies);
    for (const Copy& copy : barrier.copies) barrier.bytes -= copy.size;
    barrier.copies.clear();
    EndPhaseIfAllCame(barrier);
    return true;
  }
  return false;
}

bool ReleaseWarps() {
  const size_t threads = block.fibers.size();
  bool any = false;
  for (size_t w = 0; w < threads; w += kWarp) {
    any = Release(w, std::min<size_t>(w + kWarp, threads), State::kAtExchange) || any;
  }
  for (size_t w = 0; w < threads; w += kWarpgroup) {
    any = Release(w, std::min<size_t>(w + kWarpgroup, threads), State::kAtWarpgroup) || any;
  }
  return any;
}

void RunBlock(unsigned number) {
  const size_t threads = block.fibers.size();
  // Bytes that are no number in bf16, fp16 and fp32.
  std::fill(block.shared.begin(), block.shared.end(), static_cast<unsigned char>(0xff));
  block.barriers.clear();
  block.copies_at_once = number % 2 == 1;
  for (size_t i = 0; i < threads; ++i) Begin(block.fibers[i], static_cast<unsigned>(i));
  std::vector<size_t> order(threads);
  std::iota(order.begin(), order.end(), size_t{0});
  if (number % 3 == 1) std::reverse(order.begin(), order.end());
  if (number % 3 == 2) std::shuffle(order.begin(), order.end(), std::mt19937(number));
  for (;;) {
    for (const size_t i : order) {
      if (block.fibers[i].state == State::kReady) Resume(block.fibers[i]);
    }
    if (ReleaseWarps() || ReleaseOfPhases()) continue;
    if (Release(0, threads, State::kAtBarrier)) continue;
    if (FinishCopies(order)) continue;
    const bool all_done = std::all_of(block.fibers.begin(), block.fibers.end(),
                                      [](const Fiber& f) { return f.state == State::kDone; });
    if (!all_done) Die("threads of a block wait for each other at different places");
    for (const auto& [at, barrier] : block.barriers) {
      if (!barrier.copies.empty()) Die("a block ended with bulk copies on their way");
    }
    return;
  }
}

Barrier& BarrierAt(const void* at) {
  const auto found = block.barriers.find(at);
  if (found == block.barriers.end()) Die("a barrier that nobody made ready");
  return found->second;
}

}  // namespace

void Launch(Dim3 grid, Dim3 dim, size_t shared_bytes, const std::function<void()>& thread) {
  const size_t threads = size_t{dim.x} * dim.y * dim.z;
  if (threads == 0 || threads > 1024 || threads % kWarp != 0) Die("a block of odd size");
  if (block.fibers.size() != threads) block.fibers = std::vector<Fiber>(threads);
  block.shared.resize(shared_bytes + 1024);
  const auto at = reinterpret_cast<uintptr_t>(block.shared.data());
  block.aligned = block.shared.data() + (1024 - at % 1024) % 1024;
  block.thread = &thread;
  block.block_dim = dim;
  block.grid_dim = grid;
  unsigned number = 0;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block.block_index = Dim3(x, y, z);
        RunBlock(number++);
      }
    }
  }
}

Dim3& ThreadIdx() { return block.thread_index; }
Dim3& BlockIdx() { return block.block_index; }
Dim3& BlockDim() { return block.block_dim; }
Dim3& GridDim() { return block.grid_dim; }
unsigned char* Shared() { return block.aligned; }

void SyncThreads() { Yield(State::kAtBarrier); }

void Exchange(const void* mine, size_t bytes, void* of_all) {
  if (bytes > kExchangeMax) Die("too much for an exchange");
  Fiber& self = *block.running;
  std::memcpy(self.mine, mine, bytes);
  Yield(State::kAtExchange);
  const size_t i = static_cast<size_t>(&self - block.fibers.data());
  const size_t first = i / kWarp * kWarp;
  for (size_t lane = 0; lane < kWarp; ++lane) {
    std::memcpy(static_cast<unsigned char*>(of_all) + lane * bytes, block.fibers[first + lane].mine,
                bytes);
  }
  Yield(State::kAtExchange);  // until all have read
}

void CopyAsync(void* to, const void* from, int bytes, int size) {
  const auto aligned = static_cast<uintptr_t>(size);
  if (reinterpret_cast<uintptr_t>(to) % aligned != 0 ||
      (bytes > 0 && reinterpret_cast<uintptr_t>(from) % aligned != 0)) {
    Die("an asynchronous copy that is not aligned");
  }
  block.running->open.push_back({to, from, bytes, size});
}

void CommitCopies() {
  block.running->groups.push_back(std::move(block.running->open));
  block.running->open.clear();
}

void WaitCopies(int groups_left) {
  auto& groups = block.running->groups;
  while (groups.size() > static_cast<size_t>(groups_left)) {
    Do(groups.front());
    groups.erase(groups.begin());
  }
}

void BarrierInit(void* at, int arrivals) {
  if (reinterpret_cast<uintptr_t>(at) % 8 != 0) Die("a barrier that is not aligned");
  block.barriers[at] = {.arrivals = arrivals, .missing = arrivals, .copies = {}};
}

void BarrierArrive(void* at, int bytes_expected) {
  Barrier& barrier = BarrierAt(at);
  if (barrier.missing == 0) Die("more arrived at a barrier than it was made for");
  barrier.bytes += bytes_expected;
  --barrier.missing;
  EndPhaseIfAllCame(barrier);
}

void BarrierWait(void* at, int parity) {
  Barrier& barrier = BarrierAt(at);
  if (barrier.parity != parity) return;
  block.running->waits_for = &barrier;
  block.running->waits_for_parity = parity;
  Yield(State::kAtPhase);
}

void CopyBulk(void* to, const void* from, int bytes, void* at) {
  const auto places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (places % 16 != 0 || bytes % 16 != 0 || bytes <= 0) Die("a bulk copy that is not aligned");
  Barrier& barrier = BarrierAt(at);
  barrier.copies.push_back({to, from, bytes, bytes});
  if (!block.copies_at_once) return;
  Do(barrier.copies);
  barrier.copies.clear();
  barrier.bytes -= bytes;
  EndPhaseIfAllCame(barrier);
}

void Defer(uint64_t what, std::function<void()> share) {
  Fiber& self = *block.running;
  self.deferred_what = (self.deferred_what ^ what) * 0x9e3779b97f4a7c15u + 1;
  self.deferred.push_back(std::move(share));
}

void CommitDeferred() {
  Fiber& self = *block.running;
  self.deferred_groups.push_back(std::move(self.deferred));
  self.deferred.clear();
  Yield(State::kAtWarpgroup);
  const size_t i = static_cast<size_t>(&self - block.fibers.data());
  const size_t first = i / kWarpgroup * kWarpgroup;
  if (first + kWarpgroup > block.fibers.size()) Die("fewer than four warps for a product of four");
  for (size_t other = first; other < first + kWarpgroup; ++other) {
    if (block.fibers[other].deferred_what != self.deferred_what) {
      Die("threads of a warpgroup do not multiply the same");
    }
  }
  Yield(State::kAtWarpgroup);  // until all have looked
}

void WaitDeferred(int groups_left) {
  auto& groups = block.running->deferred_groups;
  while (groups.size() > static_cast<size_t>(groups_left)) {
    for (const auto& share : groups.front()) share();
    groups.erase(groups.begin());
  }
}

}  // namespace simt
