#include "services/base/mix.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

// SplitMix64 from seed 0, as its authors publish it.
TEST(MixTest, GivesTheNumbersOfSplitMix64) {
  constexpr uint64_t kGamma = 0x9e3779b97f4a7c15u;
  EXPECT_EQ(MixBits(0), 0u);
  EXPECT_EQ(MixBits(kGamma), 0xe220a8397b1dcdafu);
  EXPECT_EQ(MixBits(2 * kGamma), 0x6e789e6aa1b965f4u);
  EXPECT_EQ(MixBits(3 * kGamma), 0x06c45d188009454fu);
}

}  // namespace
}  // namespace switchyard
