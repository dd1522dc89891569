#include "services/base/memory.h"

#include <gtest/gtest.h>

#include "tests/unit/services/base/fake_root.h"

namespace switchyard {
namespace {

class MemoryTest : public FakeRootTest {
 protected:
  MemoryTest() { Write("/proc/meminfo", "MemTotal: 100 kB\nMemAvailable:    64 kB\n"); }
};

TEST_F(MemoryTest, TheMachineWithoutGroups) { EXPECT_EQ(AvailableMemoryBytes(root_), 64u * 1024); }

TEST_F(MemoryTest, UnlimitedGroupsDoNotCount) {
  Write("/proc/self/cgroup", "0::/job\n");
  Write("/sys/fs/cgroup/job/memory.max", "max\n");
  Write("/sys/fs/cgroup/job/memory.current", "4096\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 64u * 1024);
}

TEST_F(MemoryTest, TheGroupsLimitLessWhatItCannotGiveBack) {
  Write("/proc/self/cgroup", "0::/job\n");
  Write("/sys/fs/cgroup/job/memory.max", "40000\n");
  Write("/sys/fs/cgroup/job/memory.current", "30000\n");
  Write("/sys/fs/cgroup/job/memory.stat", "anon 10\ninactive_file 5000\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 15000u);
  Write("/sys/fs/cgroup/job/memory.current", "90000\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 0u);
}

TEST_F(MemoryTest, FirstVersionGroupsInAContainer) {
  Write("/proc/self/cgroup", "5:memory:/outside\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9000\n");
  Write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "4000\n");
  Write("/sys/fs/cgroup/memory/memory.stat", "total_inactive_file 1000\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 6000u);
}

TEST_F(MemoryTest, NothingToReadIsZero) { EXPECT_EQ(AvailableMemoryBytes(root_ + "/none"), 0u); }

}  // namespace
}  // namespace switchyard
