#include "services/config/routing_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace switchyard::config {
namespace {

using ::testing::HasSubstr;

// The one spelling of what was given.
std::string Canonical(const std::string& text) {
  const auto options = ParseRoutingPolicy(text);
  EXPECT_TRUE(options.ok()) << options.status();
  if (!options.ok()) return "";
  EXPECT_EQ(*ParseRoutingPolicy(options->Name()), *options) << "read back";
  return options->Name();
}

TEST(RoutingOptions, HasOneSpellingForEachPolicy) {
  EXPECT_EQ(Canonical("gate"), "gate");
  EXPECT_EQ(Canonical("entropy:few=2,low=0.50"), "entropy:low=0.5,few=2");
  EXPECT_EQ(Canonical("entropy:add=next-best,high=.9,low=0.1,few=1"),
            "entropy:low=0.1,few=1,high=0.9,add=next-best");
  EXPECT_EQ(Canonical("entropy:high=0.9,add=17"), "entropy:high=0.9,add=17");
  EXPECT_EQ(Canonical("entropy:high=0.9,switch=0"), "entropy:high=0.9,switch=0");
  EXPECT_EQ(Canonical("cumulative:p=0.8"), "cumulative:p=0.8,min=1");
  EXPECT_EQ(Canonical("capacity:factor=1.25"), "capacity:factor=1.25");
  EXPECT_EQ(Canonical("node-limited:max=2"), "node-limited:max=2");
  EXPECT_EQ(Canonical("node-limited:nodes=8,max=2"), "node-limited:max=2,nodes=8");
}

TEST(RoutingOptions, OnlyCapacityDependsOnTheBatch) {
  EXPECT_TRUE(ParseRoutingPolicy("capacity:factor=2")->depends_on_batch());
  for (const char* text : {"gate", "cumulative:p=0.8", "entropy:low=0.5,few=1",
                           "entropy:high=0.5,switch=1", "node-limited:max=1"}) {
    EXPECT_FALSE(ParseRoutingPolicy(text)->depends_on_batch()) << text;
  }
}

TEST(RoutingOptions, RefusesWithThePartAndTheForm) {
  const struct {
    const char* text;
    const char* why;
  } cases[] = {
      {"", "there are gate, entropy, cumulative, capacity, node-limited"},
      {"greedy", "no policy \"greedy\""},
      {"gate:p=1", "gate has no \"p\""},
      {"cumulative", "needs p"},
      {"cumulative:", "\"\" is not KEY=VALUE"},
      {"cumulative:p", "\"p\" is not KEY=VALUE"},
      {"cumulative:p=0.5,p=0.6", "\"p=0.6\" is given twice"},
      {"cumulative:p=1.5", "p=\"1.5\" is not a number from 0 to 1"},
      {"cumulative:p=nan", "p=\"nan\" is not a number from 0 to 1"},
      {"cumulative:p=0.5,min=0", "min=\"0\" is not an integer of 1 or more"},
      {"cumulative:p=0.5,few=2", "cumulative has no \"few\""},
      {"entropy:few=2", "needs low, high or both"},
      {"entropy:low=0.5", "needs low and few together"},
      {"entropy:high=0.5,few=2,add=1", "needs low and few together"},
      {"entropy:high=0.5", "needs high together with add or switch"},
      {"entropy:low=0.5,few=1,add=1", "needs high together with add or switch"},
      {"entropy:high=0.5,add=1,switch=2", "either add or switch, not both"},
      {"entropy:low=0.6,few=1,high=0.5,add=1", "a low that is not above high"},
      {"entropy:high=0.5,add=best", "is not an integer of 0 or more or \"next-best\""},
      {"entropy:high=0.5,switch=next-best", "is not an integer of 0 or more"},
      {"capacity:factor=0", "factor=\"0\" is not a number"},
      {"capacity:factor=inf", "factor=\"inf\" is not a number"},
      {"capacity", "needs factor"},
      {"node-limited:nodes=4", "needs max"},
      {"node-limited:max=0", "max=\"0\" is not an integer of 1 or more"},
      {"node-limited:max=2,p=1", "node-limited has no \"p\""},
  };
  for (const auto& c : cases) {
    const auto options = ParseRoutingPolicy(c.text);
    ASSERT_FALSE(options.ok()) << c.text;
    const std::string message(options.status().message());
    EXPECT_THAT(message, HasSubstr(c.why)) << c.text;
  }
}

}  // namespace
}  // namespace switchyard::config
