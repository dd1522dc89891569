#include "gateway/text/stop_matcher.h"

#include <algorithm>
#include <random>

#include "gtest/gtest.h"

namespace switchyard::gateway {
namespace {

TEST(StopMatcherTest, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher stops({"END"}, false);
  EXPECT_EQ(stops.Push("the E"), "the ");
  EXPECT_EQ(stops.Push("N"), "");
  EXPECT_EQ(stops.Push("ough, E"), "ENough, ");
  EXPECT_EQ(stops.Push("ND rest"), "");
  EXPECT_TRUE(stops.stopped());
  EXPECT_EQ(stops.matched(), "END");
  EXPECT_EQ(stops.Push("more"), "");
  EXPECT_EQ(stops.Flush(), "");
}

TEST(StopMatcherTest, IncludesTheStopWhenAsked) {
  StopMatcher stops({"\n\n", ""}, true);
  EXPECT_EQ(stops.Push("a\n"), "a");
  EXPECT_EQ(stops.Push("\nb"), "\n\n");
  EXPECT_TRUE(stops.stopped());
}

TEST(StopMatcherTest, FlushGivesBackWhatWasHeld) {
  StopMatcher stops({"abc"}, false);
  EXPECT_EQ(stops.Push("xab"), "x");
  EXPECT_EQ(stops.Flush(), "ab");
  EXPECT_FALSE(stops.stopped());
  EXPECT_EQ(stops.matched(), "");
}

TEST(StopMatcherTest, TheFirstToEndCountsThenTheLongest) {
  StopMatcher first({"abcd", "bc"}, false);
  EXPECT_EQ(first.Push("xabcd"), "xa");
  EXPECT_EQ(first.matched(), "bc");
  StopMatcher longest({"c", "abc", "bc"}, false);
  EXPECT_EQ(longest.Push("xabc"), "x");
  EXPECT_EQ(longest.matched(), "abc");
}

TEST(StopMatcherTest, WithoutStopsNothingIsHeld) {
  StopMatcher stops({}, false);
  EXPECT_EQ(stops.Push("all of it"), "all of it");
  EXPECT_FALSE(stops.stopped());
}

// What the whole text looks like up to its first stop, by plain search.
std::string Expected(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

TEST(StopMatcherTest, DoesNotDependOnHowTheTextIsCut) {
  std::mt19937 random(7);
  const auto letters = [&](size_t size) {
    std::string text;
    for (size_t i = 0; i < size; ++i) text.push_back("ab"[random() % 2]);
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = 0; i < 1 + random() % 3; ++i) stops.push_back(letters(2 + random() % 7));
    const std::string text = letters(30);
    StopMatcher matcher(stops, false);
    std::string shown;
    for (size_t at = 0; at < text.size();) {
      const size_t size = 1 + random() % 5;
      shown += matcher.Push(std::string_view(text).substr(at, size));
      at += size;
    }
    shown += matcher.Flush();
    ASSERT_EQ(shown, Expected(text, stops)) << "round " << round << " of seed 7";
  }
}

}  // namespace
}  // namespace switchyard::gateway
