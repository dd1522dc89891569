#include "router/service/counter_windows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "router/service/load_report.h"

namespace switchyard::router {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;

// Two counters that grow by 1 and 10 a millisecond of virtual time.
class CounterWindowsTest : public testing::Test {
 protected:
  std::vector<uint64_t> Counters() const {
    const auto ms = static_cast<uint64_t>(now_.time_since_epoch() / milliseconds(1));
    return {ms, 10 * ms};
  }
  void Run(milliseconds time, milliseconds tick = milliseconds(25)) {
    for (milliseconds gone(0); gone < time; gone += tick) {
      now_ += tick;
      if (windows_.Due(now_)) windows_.Add(now_, Counters()), ++added_;
    }
  }
  CounterWindows::Counts Over(size_t window) const {
    return windows_.Over(window, now_, Counters());
  }

  CounterWindows windows_;
  CounterWindows::Time now_{};
  int added_ = 0;
};

TEST_F(CounterWindowsTest, NothingWasCountedBeforeTheFirstSnapshot) {
  EXPECT_EQ(Over(0).seconds, 0);
  EXPECT_THAT(Over(0).counts, ElementsAre(0, 0));
}

TEST_F(CounterWindowsTest, AWindowSpansItsTimeAndAtMostAnEighthMore) {
  Run(std::chrono::minutes(3));
  for (int i = 0; i < 100; ++i) {
    Run(milliseconds(75));
    for (size_t w = 0; w < CounterWindows::kWindows.size(); ++w) {
      const auto over = Over(w);
      const auto named = static_cast<double>(CounterWindows::kWindows[w].count());
      EXPECT_GE(over.seconds, named);
      EXPECT_LE(over.seconds, named * 1.125 + 0.05);
      EXPECT_NEAR(static_cast<double>(over.counts[0]), over.seconds * 1000, 1e-3);
      EXPECT_NEAR(static_cast<double>(over.counts[1]), over.seconds * 10000, 1e-3);
    }
  }
}

TEST_F(CounterWindowsTest, SoonAfterTheStartAWindowIsShorter) {
  Run(milliseconds(3025));
  EXPECT_NEAR(Over(2).seconds, 3, 0.01);
  EXPECT_EQ(Over(2).counts[0], 3000);
  EXPECT_NEAR(Over(0).seconds, 1, 0.13);
}

TEST_F(CounterWindowsTest, WhatIsPastTheWindowIsForgotten) {
  windows_.Add(now_, {0});
  now_ += milliseconds(1000);
  windows_.Add(now_, {500});
  for (int s = 0; s < 80; ++s) {
    now_ += milliseconds(1000);
    windows_.Add(now_, {500});
    EXPECT_EQ(windows_.Over(0, now_, std::vector<uint64_t>{500}).counts[0], 0u);
    // In between it depends on where the snapshots lie.
    const uint64_t last_minute = windows_.Over(2, now_, std::vector<uint64_t>{500}).counts[0];
    if (s < 58) {
      EXPECT_EQ(last_minute, 500u) << s;
    }
    if (s > 66) {
      EXPECT_EQ(last_minute, 0u) << s;
    }
  }
}

TEST_F(CounterWindowsTest, SnapshotsAreNoMoreThanTheWindowsNeed) {
  Run(std::chrono::minutes(10), milliseconds(5));
  EXPECT_LE(added_, 10 * 60 * 8 * 1.2);  // the shortest window's
}

TEST_F(CounterWindowsTest, FurtherCountersBeginAtZeroAndFallenOnesAnew) {
  windows_.Add(now_, {100, 100});
  now_ += milliseconds(500);
  EXPECT_THAT(windows_.Over(0, now_, std::vector<uint64_t>{150, 7, 9}).counts,
              ElementsAre(50, 7, 9));
}

TEST(LoadReportTest, PercentilesLieInsideOfTheirBucket) {
  EXPECT_EQ(Percentile(std::vector<uint64_t>{0, 0}, 0.5), 0);
  EXPECT_EQ(Percentile(std::vector<uint64_t>{5}, 0.5), 0);
  const std::vector<uint64_t> counts = {0, 0, 98, 0, 2};  // 98 of [2, 4), 2 of [8, 16)
  EXPECT_NEAR(Percentile(counts, 0.5), 3.02, 0.01);
  EXPECT_NEAR(Percentile(counts, 0.99), 12, 0.01);
  EXPECT_EQ(Percentile(counts, 1), 16);
}

}  // namespace
}  // namespace switchyard::router
