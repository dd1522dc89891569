#include "services/kernels/thread_pool.h"

#include <time.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace switchyard::kernels {
namespace {

double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, VisitsEachItemOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  for (int64_t n : {0, 1, 2, 7, 64, 1000, 4099}) {
    for (int64_t grain : {0, 1, 3, 100, 10000}) {
      std::vector<int> visits(static_cast<size_t>(n), 0);  // plain: TSan sees overlapping pieces
      pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end) {
        ASSERT_LT(begin, end);
        EXPECT_TRUE(end - begin >= grain || end == n);
        for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
      });
      EXPECT_EQ(visits, std::vector<int>(static_cast<size_t>(n), 1)) << n << "/" << grain;
    }
  }
}

TEST_P(ThreadPoolTest, ManyTinyJobsSeeEachOthersResults) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> values(8, 0);
  for (int64_t job = 0; job < 20000; ++job) {
    pool.ParallelFor(8, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] += i;
    });
  }
  for (int64_t i = 0; i < 8; ++i) EXPECT_EQ(values[static_cast<size_t>(i)], 20000 * i);
}

TEST_P(ThreadPoolTest, IsDestroyedWhileAwakeAndWhileNeverUsed) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(GetParam());
    if (i % 2 == 0) pool.ParallelFor(4, 1, [](int64_t, int64_t) {});
  }
}

// Of a caller who is inside for 200 ms and outside for as long.
TEST_P(ThreadPoolTest, CountsTheTimeInside) {
  using std::chrono::steady_clock;
  ThreadPool pool(GetParam());
  const auto began = steady_clock::now();
  const auto spin = [](auto until) {
    while (steady_clock::now() < until) {
    }
  };
  spin(began + std::chrono::milliseconds(200));
  EXPECT_EQ(pool.seconds_inside(), 0);
  const auto entered = steady_clock::now();
  pool.ParallelFor(1, 1, [&](int64_t, int64_t) { spin(entered + std::chrono::milliseconds(200)); });
  const std::chrono::duration<double> inside = steady_clock::now() - entered;
  EXPECT_GE(pool.seconds_inside(), 0.19);
  EXPECT_LE(pool.seconds_inside(), 1.05 * inside.count());
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 3, 5));

TEST(ThreadPoolIdle, UsesNoCpuAndStillWakes) {
  ThreadPool pool(4);
  std::atomic<int64_t> sum = 0;
  auto add = [&](int64_t begin, int64_t end) { sum += end - begin; };
  pool.ParallelFor(100, 1, add);
  // Not a synchronisation: the span over which idleness is measured.
  const double before = CpuSeconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(CpuSeconds() - before, 0.05);
  pool.ParallelFor(100, 1, add);
  EXPECT_EQ(sum, 200);
}

TEST(ThreadPoolIdle, WorkersTakePartInLongJobs) {
  ThreadPool pool(2);
  std::atomic<int> inside = 0;
  // Each piece ends only when both threads are inside one: the worker must have come.
  pool.ParallelFor(2, 1, [&](int64_t, int64_t) {
    ++inside;
    while (inside < 2) std::this_thread::yield();
  });
  EXPECT_EQ(inside, 2);
}

TEST(ThreadPoolDeathTest, NestedUseIsAProgrammersError) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (int threads : {1, 2}) {
    EXPECT_DEATH(
        {
          ThreadPool pool(threads);
          pool.ParallelFor(4, 1,
                           [&](int64_t, int64_t) { pool.ParallelFor(4, 1, [](auto, auto) {}); });
        },
        "busy");
  }
}

}  // namespace
}  // namespace switchyard::kernels
