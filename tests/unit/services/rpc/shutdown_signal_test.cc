#include "services/rpc/shutdown_signal.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <thread>

namespace switchyard::rpc {
namespace {

TEST(ShutdownSignal, WaitsForBothSignalsAlsoWhenAThreadTookThem) {
  ShutdownSignal shutdown;
  EXPECT_FALSE(shutdown.WaitFor(absl::ZeroDuration()));
  for (int number : {SIGTERM, SIGINT}) {
    std::thread([&] { ::kill(::getpid(), number); }).join();
    EXPECT_TRUE(shutdown.WaitFor(absl::Seconds(20)));
    EXPECT_FALSE(shutdown.WaitFor(absl::ZeroDuration()));
  }
  ::kill(::getpid(), SIGTERM);
  shutdown.Wait();
}

}  // namespace
}  // namespace switchyard::rpc
