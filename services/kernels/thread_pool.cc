#include "services/kernels/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "services/base/check.h"
#include "services/base/pause.h"

namespace switchyard::kernels {
namespace {

// One word says all about the current job, so that entering it and closing it are one atomic step:
// the number of workers inside, whether more may enter, and which job it is.
constexpr uint64_t kInside = 0xffff;
constexpr uint64_t kOpen = 0x10000;
constexpr uint64_t kJob = 0x20000;
constexpr uint64_t kJobMask = ~(kJob - 1);

constexpr int kPauses = 20;  // about 1 µs; then the core is offered to others at each turn
constexpr auto kAwake = std::chrono::microseconds(100);
constexpr int kPiecesPerThread = 8;

// The cheapest clock there is, as ParallelFor is called a hundred times a step; its rate is learnt
// from the other clock when somebody asks.
inline uint64_t Ticks() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t ticks;
  __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
  return ticks;
#else
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
#endif
}

// One turn of a bounded wait: the first are pauses, later ones give the core away.
inline void Relax(int turn) {
  if (turn < kPauses) {
    Pause();
  } else {
    sched_yield();
  }
}

}  // namespace

struct ThreadPool::Shared {
  // Written by the caller while the job is closed and nobody is inside; read by those who entered.
  const absl::FunctionRef<void(int64_t, int64_t)>* body = nullptr;
  int64_t n = 0;
  int64_t piece = 1;

  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<uint64_t> state{0};
  alignas(64) std::atomic<uint32_t> wake{0};
  std::atomic<int> asleep{0};
  std::atomic<bool> stop{false};
  std::atomic<bool> busy{false};
  uint64_t entered = 0;                   // the caller's
  std::atomic<uint64_t> ticks_inside{0};  // written by the caller alone
  const uint64_t first_tick = Ticks();
  const std::chrono::steady_clock::time_point began = std::chrono::steady_clock::now();
  std::vector<std::thread> workers;

  void Enter() {
    SY_CHECK(!busy.exchange(true, std::memory_order_acquire));  // nested, or two callers at once
    entered = Ticks();
  }

  void Leave() {
    const uint64_t inside = ticks_inside.load(std::memory_order_relaxed) + (Ticks() - entered);
    ticks_inside.store(inside, std::memory_order_relaxed);
    busy.store(false, std::memory_order_release);
  }

  void RunPieces() {
    while (true) {
      const int64_t begin = next.fetch_add(piece, std::memory_order_relaxed);
      if (begin >= n) return;
      (*body)(begin, std::min(n, begin + piece));
    }
  }

  // True if a job other than `last` was open; it has then been run as far as pieces were left.
  bool TryJob(uint64_t* last) {
    uint64_t seen = state.load(std::memory_order_acquire);
    while ((seen & kOpen) != 0 && (seen & kJobMask) != *last) {
      if (state.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) {
        *last = seen & kJobMask;
        RunPieces();
        state.fetch_sub(1, std::memory_order_release);
        return true;
      }
    }
    return false;
  }

  void Sleep(uint64_t last) {
    const uint32_t ticket = wake.load(std::memory_order_seq_cst);
    asleep.fetch_add(1, std::memory_order_seq_cst);
    // A job opened before the caller could see this sleeper must not be missed.
    const uint64_t seen = state.load(std::memory_order_seq_cst);
    const bool work = (seen & kOpen) != 0 && (seen & kJobMask) != last;
    if (!work && !stop.load(std::memory_order_seq_cst)) wake.wait(ticket);
    asleep.fetch_sub(1, std::memory_order_relaxed);
  }

  void Work() {
    using Clock = std::chrono::steady_clock;
    uint64_t last = 0;
    int turn = 0;
    Clock::time_point bound = Clock::now() + kAwake;
    while (!stop.load(std::memory_order_relaxed)) {
      if (TryJob(&last)) {
        turn = 0;
        bound = Clock::now() + kAwake;
      } else if (turn < kPauses || Clock::now() < bound) {
        Relax(turn++);
      } else {
        Sleep(last);
        turn = 0;
        bound = Clock::now() + kAwake;
      }
    }
  }
};

ThreadPool::ThreadPool(int threads) : shared_(std::make_unique<Shared>()) {
  SY_CHECK(threads >= 1 && threads < static_cast<int>(kInside));
  for (int i = 1; i < threads; ++i) {
    shared_->workers.emplace_back([shared = shared_.get()] { shared->Work(); });
    pthread_setname_np(shared_->workers.back().native_handle(), "compute");
  }
}

ThreadPool::~ThreadPool() {
  shared_->stop.store(true, std::memory_order_seq_cst);
  shared_->wake.fetch_add(1, std::memory_order_seq_cst);
  shared_->wake.notify_all();
  for (std::thread& worker : shared_->workers) worker.join();
}

int ThreadPool::threads() const { return static_cast<int>(shared_->workers.size()) + 1; }

double ThreadPool::seconds_inside() const {
  const uint64_t inside = shared_->ticks_inside.load(std::memory_order_relaxed);
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - shared_->began;
  const auto ticks = static_cast<double>(Ticks() - shared_->first_tick);
  return ticks > 0 ? static_cast<double>(inside) / ticks * passed.count() : 0;
}

uint64_t ThreadPool::progress() const {
  return shared_->ticks_inside.load(std::memory_order_relaxed) +
         shared_->state.load(std::memory_order_relaxed) +
         static_cast<uint64_t>(shared_->next.load(std::memory_order_relaxed));
}

void ThreadPool::ParallelFor(int64_t n, int64_t grain,
                             absl::FunctionRef<void(int64_t, int64_t)> body) {
  if (n <= 0) return;
  Shared& s = *shared_;
  s.Enter();
  grain = std::max<int64_t>(grain, 1);
  if (n <= grain || s.workers.empty()) {
    body(0, n);
    s.Leave();
    return;
  }
  const int64_t cuts = static_cast<int64_t>(threads()) * kPiecesPerThread;
  s.body = &body;
  s.n = n;
  s.piece = std::max(grain, (n + cuts - 1) / cuts);
  s.next.store(0, std::memory_order_relaxed);
  s.state.fetch_add(kJob + kOpen, std::memory_order_seq_cst);
  if (s.asleep.load(std::memory_order_seq_cst) > 0) {
    s.wake.fetch_add(1, std::memory_order_seq_cst);
    s.wake.notify_all();
  }
  s.RunPieces();
  // Nobody enters any more; whoever sleeps is not waited for.
  uint64_t inside = s.state.fetch_sub(kOpen, std::memory_order_acq_rel) & kInside;
  for (int turn = 0; inside != 0; ++turn) {
    Relax(turn);
    inside = s.state.load(std::memory_order_acquire) & kInside;
  }
  s.Leave();
}

}  // namespace switchyard::kernels
