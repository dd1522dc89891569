#include "services/base/repeat_filter.h"

#include <gtest/gtest.h>

namespace switchyard::log {
namespace {

TEST(RepeatFilterTest, PassesOnChangeAndElseOnceAPeriod) {
  RepeatFilter filter(absl::Minutes(1));
  const absl::Time start = absl::UnixEpoch();
  EXPECT_TRUE(filter.Passes("a", "one", start));
  EXPECT_FALSE(filter.Passes("a", "one", start + absl::Seconds(59)));
  EXPECT_TRUE(filter.Passes("b", "one", start + absl::Seconds(59)));
  EXPECT_TRUE(filter.Passes("a", "one", start + absl::Seconds(60)));
  EXPECT_TRUE(filter.Passes("a", "two", start + absl::Seconds(61)));
  EXPECT_FALSE(filter.Passes("a", "two", start + absl::Seconds(62)));
}

TEST(RepeatFilterTest, KeepsABoundedNumberOfKeys) {
  RepeatFilter filter;
  const absl::Time now = absl::UnixEpoch();
  for (size_t i = 0; i < RepeatFilter::kKeysMax; ++i) {
    EXPECT_TRUE(filter.Passes(std::to_string(i), "x", now));
  }
  EXPECT_FALSE(filter.Passes("0", "x", now));
  EXPECT_TRUE(filter.Passes("one more", "x", now));
  EXPECT_TRUE(filter.Passes("0", "x", now));  // forgotten with all others
}

}  // namespace
}  // namespace switchyard::log
