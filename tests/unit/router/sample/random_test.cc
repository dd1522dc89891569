#include "router/sample/random.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace switchyard::router {
namespace {

using testing::ElementsAre;

// The known answers that come with the authors' Random123 library.
TEST(RandomTest, PhiloxGivesTheKnownAnswers) {
  EXPECT_THAT(Philox({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(Philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(RandomTest, EveryPartOfTheKeyMatters) {
  std::set<double> seen;
  for (uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, ~uint64_t{0}}) {
    for (int choice : {0, 1, 127}) {
      for (int64_t position : {int64_t{0}, int64_t{1}, int64_t{1} << 33}) {
        seen.insert(Uniform(seed, choice, position));
      }
    }
  }
  EXPECT_EQ(seen.size(), 4u * 3 * 3);
  EXPECT_EQ(Uniform(5, 1, 7), Uniform(5, 1, 7));
}

TEST(RandomTest, UniformFillsTheUnitInterval) {
  constexpr int kDraws = 20000, kBins = 20;
  int bins[kBins] = {};
  for (int i = 0; i < kDraws; ++i) {
    const double u = Uniform(42, 0, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    ++bins[static_cast<int>(u * kBins)];
  }
  double chi2 = 0;
  for (int n : bins) chi2 += (n - 1000.0) * (n - 1000.0) / 1000.0;
  EXPECT_LT(chi2, 50);  // 19 degrees of freedom: p < 0.0002
}

}  // namespace
}  // namespace switchyard::router
