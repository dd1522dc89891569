#include "tools/cli/bench_stats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(BenchStatsTest, PercentilesAreNearestRank) {
  std::vector<float> values;
  for (int i = 100; i >= 1; --i) values.push_back(static_cast<float>(i));
  const Distribution d = Summarise(values);
  EXPECT_DOUBLE_EQ(d.mean, 50.5);
  EXPECT_EQ(d.p50, 50);
  EXPECT_EQ(d.p90, 90);
  EXPECT_EQ(d.p99, 99);
  EXPECT_EQ(d.max, 100);
  std::vector<float> one = {3};
  EXPECT_EQ(Summarise(one).p99, 3);
  std::vector<float> none;
  EXPECT_EQ(Summarise(none).max, 0);
}

TEST(BenchStatsTest, FailedRequestsCountButDoNotEnterTheTimes) {
  std::vector<RequestRecord> records(3);
  records[0] = {.start_s = 1,
                .first_token_s = 1.5,
                .end_s = 3,
                .prompt_tokens = 5,
                .output_tokens = 10,
                .token_gaps_ms = {1, 2}};
  records[1] = {.start_s = 2,
                .first_token_s = 2.25,
                .end_s = 5,
                .prompt_tokens = 5,
                .output_tokens = 30,
                .token_gaps_ms = {3}};
  records[2] = {.start_s = 0, .end_s = 100, .error = "HTTP 429"};
  const BenchReport report = MakeReport(records);
  EXPECT_EQ(report.requests, 3);
  EXPECT_EQ(report.failed, 1);
  EXPECT_EQ(report.first_error, "HTTP 429");
  EXPECT_DOUBLE_EQ(report.seconds, 4);
  EXPECT_DOUBLE_EQ(report.output_tokens_per_s(), 10);
  EXPECT_DOUBLE_EQ(report.ttft_ms.max, 500);
  EXPECT_DOUBLE_EQ(report.itl_ms.mean, 2);
  EXPECT_THAT(ToText(report), Not(HasSubstr("waited")));
}

TEST(BenchStatsTest, DelayedRequestsAreTold) {
  std::vector<RequestRecord> records(3);
  records[1].delay_ms = 10;
  records[2].delay_ms = 30;
  records[2].error = "HTTP 429";
  const BenchReport report = MakeReport(records);
  EXPECT_EQ(report.delayed, 2);
  EXPECT_DOUBLE_EQ(report.delay_ms.mean, 20);
  EXPECT_THAT(ToText(report), HasSubstr("2 requests waited"));
  EXPECT_EQ(ToJson(report)["delay_ms"]["max"], 30);
}

}  // namespace
}  // namespace switchyard::cli
