#include "services/base/cores.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "tests/unit/services/base/fake_root.h"

namespace switchyard {
namespace {

class CoresTest : public FakeRootTest {
 protected:
  const int all_ = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
};

TEST_F(CoresTest, WithoutALimitAll) {
  EXPECT_EQ(UsableCores(root_), all_);
  Write("/proc/self/cgroup", "0::/job\n");
  Write("/sys/fs/cgroup/job/cpu.max", "max 100000\n");
  EXPECT_EQ(UsableCores(root_), all_);
}

TEST_F(CoresTest, AQuotaIsRoundedUp) {
  Write("/proc/self/cgroup", "0::/job\n");
  Write("/sys/fs/cgroup/job/cpu.max", "50000 100000\n");
  EXPECT_EQ(UsableCores(root_), 1);
  Write("/sys/fs/cgroup/job/cpu.max", "110000 100000\n");
  EXPECT_EQ(UsableCores(root_), std::min(2, all_));
  Write("/sys/fs/cgroup/job/cpu.max", "900000000 100000\n");
  EXPECT_EQ(UsableCores(root_), all_);
}

TEST_F(CoresTest, GroupsAboveOursLimitToo) {
  Write("/proc/self/cgroup", "0::/pod/container/job\n");
  Write("/sys/fs/cgroup/pod/container/job/cpu.max", "max 100000\n");
  Write("/sys/fs/cgroup/pod/cpu.max", "100000 100000\n");
  EXPECT_EQ(UsableCores(root_), 1);
}

TEST_F(CoresTest, TheTopGroupIsOursInAContainer) {
  Write("/proc/self/cgroup", "0::/\n");
  Write("/sys/fs/cgroup/cpu.max", "100000 100000\n");
  EXPECT_EQ(UsableCores(root_), 1);
}

TEST_F(CoresTest, FirstVersionGroups) {
  Write("/proc/self/cgroup", "3:cpu,cpuacct:/job\n");
  Write("/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "-1\n");
  Write("/sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(UsableCores(root_), all_);
  Write("/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "70000\n");
  EXPECT_EQ(UsableCores(root_), 1);
}

}  // namespace
}  // namespace switchyard
