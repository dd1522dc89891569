#include "services/discovery/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard::discovery {
namespace {

TEST(Member, ComesBackFromItsJson) {
  const Member member{"10.0.0.1:8200", {{"id", "w-0:7"}, {"model", "abc\"\n"}}};
  const auto back = MemberFromJson(ToJson(member));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, member);
}

TEST(Member, WhatIsNoneIsRefused) {
  for (const char* json : {"", "[]", "{", "{}", R"({"address": 7})", R"({"address": "nowhere"})",
                           R"({"address": "0.0.0.0:8200"})", R"({"address": "unix:/run/w.sock"})",
                           R"({"address": "10.0.0.1:0"})", "\xff"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(MemberFromJson(json).status())) << json;
  }
}

TEST(Member, FieldsOfLaterVersionsArePassedOver) {
  const auto member = MemberFromJson(R"({"address": "a:1", "zone": "x", "later": {"b": [1]}})");
  ASSERT_TRUE(member.ok());
  EXPECT_EQ(*member, (Member{"a:1", {{"zone", "x"}}}));
}

}  // namespace
}  // namespace switchyard::discovery
