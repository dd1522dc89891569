#include "services/device/device_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/device/cuda.h"

namespace switchyard::device {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Kind = DeviceChoice::Kind;

TEST(ParseDevice, KnowsWhatThereIs) {
  EXPECT_EQ(ParseDevice("cpu")->kind, Kind::kCpu);
  EXPECT_EQ(ParseDevice("auto")->kind, Kind::kAuto);
  EXPECT_EQ(ParseDevice("cuda")->kind, Kind::kCuda);
  EXPECT_EQ(ParseDevice("cuda")->index, 0);
  EXPECT_EQ(ParseDevice("cuda:3")->kind, Kind::kCuda);
  EXPECT_EQ(ParseDevice("cuda:3")->index, 3);
}

TEST(ParseDevice, RefusesWhatThereIsNot) {
  for (const char* text :
       {"", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:1x", "cuda:99999999999", "CPU"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseDevice(text).status())) << text;
    EXPECT_THAT(ParseDevice(text).status().message(), HasSubstr("known: cpu, cuda, cuda:N, auto"));
  }
}

TEST(Cuda, SaysWhatIsMissing) {
  const auto none = Cuda::Open("/no/such/plugin.so", 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(none.status()));
  EXPECT_THAT(none.status().message(),
              AllOf(HasSubstr("/no/such/plugin.so"), HasSubstr("--cuda-plugin")));
  // A library, but not this plugin.
  EXPECT_THAT(Cuda::Open("libm.so.6", 0).status().message(), HasSubstr("of another version"));
  const auto far = Cuda::Open(SY_EMULATED_PLUGIN, 7);
  EXPECT_TRUE(absl::IsFailedPrecondition(far.status()));
  EXPECT_THAT(far.status().message(), HasSubstr("there is no device 7"));
}

TEST(Cuda, DescribesADevice) {
  const auto cuda = Cuda::Open(SY_EMULATED_PLUGIN, 0);
  ASSERT_TRUE(cuda.ok()) << cuda.status();
  EXPECT_EQ((*cuda)->name(), "emulated device (cuda:0)");
  const uint64_t before = *(*cuda)->FreeBytes();
  {
    const auto block = CudaBlock::Allocate(*cuda, SY_CUDA_DEVICE, 1 << 20);
    ASSERT_TRUE(block.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block->data()) % 1024, 0u);
    EXPECT_LE(*(*cuda)->FreeBytes(), before - (1 << 20));
  }
  EXPECT_EQ(*(*cuda)->FreeBytes(), before);
}

}  // namespace
}  // namespace switchyard::device
