#include "services/base/clock.h"

#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"

namespace switchyard {
namespace {

TEST(SteadyNow, GoesOnAndAgreesWithTheMachinesClock) {
  const absl::Time first = SteadyNow();
  absl::SleepFor(absl::Milliseconds(2));
  EXPECT_GE(SteadyNow(), first + absl::Milliseconds(2));
  EXPECT_LT(absl::AbsDuration(SteadyNow() - absl::Now()), absl::Seconds(1));
}

TEST(SteadyCondVar, AwaitEndsWithTheConditionOrTheTime) {
  absl::Mutex mutex;
  SteadyCondVar changed;
  bool done = false;
  const auto is_done = [&] { return done; };
  {
    absl::MutexLock lock(&mutex);
    const absl::Time begin = SteadyNow();
    EXPECT_FALSE(changed.Await(&mutex, absl::Milliseconds(5), is_done));
    EXPECT_GE(SteadyNow(), begin + absl::Milliseconds(5));
    EXPECT_FALSE(changed.Await(&mutex, -absl::InfiniteDuration(), is_done));
  }
  std::thread other([&] {
    absl::MutexLock lock(&mutex);
    done = true;
    changed.SignalAll();
  });
  {
    absl::MutexLock lock(&mutex);
    EXPECT_TRUE(changed.Await(&mutex, absl::InfiniteDuration(), is_done));
  }
  other.join();
}

}  // namespace
}  // namespace switchyard
