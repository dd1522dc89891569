#include "services/config/units.h"

#include <gtest/gtest.h>

namespace switchyard::config {
namespace {

TEST(ParseBytes, TakesUnitsAndRefusesTheRest) {
  EXPECT_EQ(*ParseBytes("1024"), 1024);
  EXPECT_EQ(*ParseBytes("4GiB"), int64_t{4} << 30);
  EXPECT_EQ(*ParseBytes("512 mib"), int64_t{512} << 20);
  EXPECT_EQ(*ParseBytes("1.5KB"), 1500);
  for (const char* bad : {"", "GiB", "1XB", "-1", "1.2.3", "99999999TiB"}) {
    EXPECT_FALSE(ParseBytes(bad).ok()) << bad;
  }
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

}  // namespace
}  // namespace switchyard::config
