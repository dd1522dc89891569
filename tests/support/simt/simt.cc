#include "tests/support/simt/simt.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

namespace simt {
namespace {

constexpr size_t kStackBytes = size_t{128} << 10;
constexpr unsigned kWarp = 32;
constexpr size_t kExchangeMax = 128;

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "simt: %s\n", what);
  std::abort();
}

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

enum class State { kReady, kAtBarrier, kAtExchange, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<std::byte[]> stack = std::make_unique<std::byte[]>(kStackBytes);
  State state = State::kReady;
  Dim3 index;
  std::vector<Copy> open;                 // not committed
  std::vector<std::vector<Copy>> groups;  // committed, the oldest first
  unsigned char mine[kExchangeMax];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<unsigned char> shared;
  unsigned char* aligned = nullptr;
  const std::function<void()>* thread = nullptr;
  ucontext_t scheduler;
  Fiber* running = nullptr;
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

void RunBlock(unsigned number) {
  const size_t threads = block.fibers.size();
  // Bytes that are no number in bf16, fp16 and fp32.
  std::fill(block.shared.begin(), block.shared.end(), static_cast<unsigned char>(0xff));
  for (size_t i = 0; i < threads; ++i) Begin(block.fibers[i], static_cast<unsigned>(i));
  std::vector<size_t> order(threads);
  std::iota(order.begin(), order.end(), size_t{0});
  if (number % 3 == 1) std::reverse(order.begin(), order.end());
  if (number % 3 == 2) std::shuffle(order.begin(), order.end(), std::mt19937(number));
  for (;;) {
    for (const size_t i : order) {
      if (block.fibers[i].state == State::kReady) Resume(block.fibers[i]);
    }
    bool moves = false;
    for (size_t w = 0; w < threads; w += kWarp) {
      moves = Release(w, std::min<size_t>(w + kWarp, threads), State::kAtExchange) || moves;
    }
    if (moves) continue;
    if (Release(0, threads, State::kAtBarrier)) continue;
    const bool all_done = std::all_of(block.fibers.begin(), block.fibers.end(),
                                      [](const Fiber& f) { return f.state == State::kDone; });
    if (all_done) return;
    Die("threads of a block wait for each other at different places");
  }
}

void Do(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    if (copy.bytes > 0) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
    std::memset(static_cast<unsigned char*>(copy.to) + copy.bytes, 0,
                static_cast<size_t>(16 - copy.bytes));
  }
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

void CopyAsync(void* to, const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 ||
      (bytes > 0 && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
    Die("an asynchronous copy that is not aligned");
  }
  block.running->open.push_back({to, from, bytes});
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

}  // namespace simt
