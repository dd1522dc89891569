// Frames of a steady stream allocate nothing: neither a part's lists nor its header, queues or
// rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "tests/support/dispatch_harness.h"

namespace {

std::atomic<uint64_t> allocations = 0;  // of all threads
thread_local uint64_t allocations_of_this_thread = 0;

constexpr size_t kPlain = alignof(std::max_align_t);

void* Counted(size_t bytes, size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  ++allocations_of_this_thread;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* block = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
  if (block == nullptr) std::abort();
  return block;
}

}  // namespace

// All of them: sanitizers hold each delete against its new.
void* operator new(size_t bytes) { return Counted(bytes, kPlain); }
void* operator new[](size_t bytes) { return Counted(bytes, kPlain); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return Counted(bytes, kPlain); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept {
  return Counted(bytes, kPlain);
}
void* operator new(size_t bytes, std::align_val_t to) { return Counted(bytes, size_t(to)); }
void* operator new[](size_t bytes, std::align_val_t to) { return Counted(bytes, size_t(to)); }
void* operator new(size_t bytes, std::align_val_t to, const std::nothrow_t&) noexcept {
  return Counted(bytes, size_t(to));
}
void* operator new[](size_t bytes, std::align_val_t to, const std::nothrow_t&) noexcept {
  return Counted(bytes, size_t(to));
}
void operator delete(void* block) noexcept { std::free(block); }
void operator delete[](void* block) noexcept { std::free(block); }
void operator delete(void* block, size_t) noexcept { std::free(block); }
void operator delete[](void* block, size_t) noexcept { std::free(block); }
void operator delete(void* block, const std::nothrow_t&) noexcept { std::free(block); }
void operator delete[](void* block, const std::nothrow_t&) noexcept { std::free(block); }
void operator delete(void* block, std::align_val_t) noexcept { std::free(block); }
void operator delete[](void* block, std::align_val_t) noexcept { std::free(block); }
void operator delete(void* block, size_t, std::align_val_t) noexcept { std::free(block); }
void operator delete[](void* block, size_t, std::align_val_t) noexcept { std::free(block); }

namespace switchyard::router {
namespace {

using testing::MoeBatch;
using testing::Router;
using testing::ServedWorker;

constexpr testing::MoeShape kShape{.hidden = 1088, .groups = 4};
constexpr int kJobs = 400;

// Batches of several sizes in turn, as decoding and its stragglers make them.
struct Batches {
  explicit Batches(const ModelSpec& spec) {
    for (const int64_t tokens : {1, 4, 16}) {
      batches.push_back(std::make_unique<MoeBatch>(spec, DType::kBF16, tokens, 3));
    }
  }
  void Run(Router& router, int times) {
    for (int i = 0; i < times; ++i) router.Run(*batches[static_cast<size_t>(i) % batches.size()]);
  }
  std::vector<std::unique_ptr<MoeBatch>> batches;
};

TEST(Allocation, TheCounterCounts) {
  const uint64_t before = allocations_of_this_thread;
  ::operator delete(::operator new(64));
  ::operator delete (::operator new (64, std::align_val_t{64}), std::align_val_t{64});
  EXPECT_EQ(allocations_of_this_thread, before + 2);
}

TEST(Allocation, OfASteadyStreamToALocalWorkerIsNone) {
  const ModelSpec spec = testing::MoeSpec(kShape);
  kernels::ThreadPool pool(2);
  const auto first = testing::MakeWorker(spec, {.experts = "0-4"}, &pool);
  const auto second = testing::MakeWorker(spec, {.experts = "5-11"}, &pool);
  Router router(spec, DType::kBF16, {}, {}, {first.get(), second.get()});
  ASSERT_TRUE(router.WhenReady());
  Batches batches(spec);
  batches.Run(router, 30);
  const uint64_t before = allocations;
  batches.Run(router, kJobs);
  EXPECT_EQ(allocations - before, 0u);
}

// A job is two calls and two answers. gRPC is asked now and then whether it has news, progress is
// told every 50 ms: a tenth of an allocation a job, on a slow machine more.
TEST(Allocation, OfASteadyStreamThroughSharedMemoryIsNoneAFrame) {
  const ModelSpec spec = testing::MoeSpec(kShape);
  ServedWorker first(spec, {.experts = "0-4"}), second(spec, {.experts = "5-11"});
  Router router(spec, DType::kBF16, {first.address(), second.address()});
  ASSERT_TRUE(router.WhenReady());
  const auto share = [&] {
    const auto links = router.dispatcher().Links();
    return links[0].wire.shares_memory && links[1].wire.shares_memory;
  };
  ASSERT_TRUE(router.Until(share));
  Batches batches(spec);
  batches.Run(router, 300);
  uint64_t least = ~uint64_t{0};
  for (int round = 0; round < 8; ++round) {
    const uint64_t before = allocations;
    batches.Run(router, kJobs / 8);
    least = std::min(least, allocations - before);
  }
  EXPECT_LT(least, kJobs / 8);
}

}  // namespace
}  // namespace switchyard::router
