#include "services/config/units.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard::config {
namespace {

using ::testing::HasSubstr;

TEST(ParseBytes, TakesUnitsAndRefusesTheRest) {
  EXPECT_EQ(*ParseBytes("67108864B"), 64 << 20);
  EXPECT_EQ(*ParseBytes("0"), 0);
  EXPECT_EQ(*ParseBytes("4GiB"), int64_t{4} << 30);
  EXPECT_EQ(*ParseBytes("512 mib"), int64_t{512} << 20);
  EXPECT_EQ(*ParseBytes("1.5KB"), 1500);
  for (const char* bad : {"", "GiB", "9", "1024", "1XB", "-1", "1.2.3", "99999999TiB"}) {
    EXPECT_FALSE(ParseBytes(bad).ok()) << bad;
  }
  EXPECT_THAT(std::string(ParseBytes("9").status().message()),
              HasSubstr("\"9\" has no unit; give a number and a unit, such as 4GiB"));
  EXPECT_EQ(FormatBytes(0), "0 bytes");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(int64_t{5} << 40), "5.0 TiB");
}

TEST(ParseDuration, TakesUnitsAndRefusesNegatives) {
  EXPECT_EQ(*ParseDuration("1m30s"), absl::Seconds(90));
  EXPECT_FALSE(ParseDuration("-1s").ok());
  EXPECT_FALSE(ParseDuration("30").ok());
}

TEST(CheckAddress, TakesHostPortAndUnix) {
  for (const char* good : {"127.0.0.1:0", "[::1]:80", "host:65535", "unix:/tmp/a", "unix:a"}) {
    EXPECT_TRUE(CheckAddress(good).ok()) << good;
  }
  for (const char* bad :
       {"", "host", ":80", "::1:80", "host:-1", "host:65536", "host:x", "unix:"}) {
    EXPECT_FALSE(CheckAddress(bad).ok()) << bad;
  }
}

TEST(ParseExpertRanges, TakesListsAndParts) {
  const auto list = ParseExpertRanges("0-2, 7");
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->ranges.size(), 2u);
  EXPECT_EQ(list->ranges[0].last, 2);
  EXPECT_EQ(list->ranges[1].first, 7);
  EXPECT_EQ(list->parts, 0);
  const auto part = ParseExpertRanges(" 1/3");
  ASSERT_TRUE(part.ok()) << part.status();
  EXPECT_EQ(part->part, 1);
  EXPECT_EQ(part->parts, 3);
  EXPECT_TRUE(ParseExpertRanges("").ok());
  for (const char* bad : {"foo", "3-1", "1-", "-1", "1,,2", "3/3", "0/0", "/", "1/2/3"}) {
    EXPECT_THAT(std::string(ParseExpertRanges(bad).status().message()), HasSubstr(bad));
  }
  EXPECT_THAT(std::string(ParseExpertRanges("1,x").status().message()), HasSubstr("see \"x\""));
}

TEST(CheckPeerAddress, TakesNamesToFollow) {
  EXPECT_TRUE(CheckPeerAddress("dns:experts.ns.svc:8200").ok());
  EXPECT_TRUE(CheckPeerAddress("experts:8200").ok());
  EXPECT_TRUE(CheckPeerAddress("unix:/run/w.sock").ok());
  EXPECT_FALSE(CheckPeerAddress("dns:experts").ok());
  EXPECT_FALSE(CheckPeerAddress("dns:unix:/run/w.sock").ok());
  EXPECT_FALSE(CheckPeerAddress("dns:a:70000").ok());
}

}  // namespace
}  // namespace switchyard::config
