#include "services/telemetry/metrics.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "services/telemetry/exposer.h"

namespace switchyard::telemetry {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

size_t Occurrences(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(Metrics, EachFamilyStandsOnceWithTheServiceAsALabel) {
  Metrics metrics;
  metrics.Counter(kGrpcErrors, "gateway", {{"method", "A"}, {"code", "13"}}).Increment(2);
  metrics.Counter(kGrpcErrors, "router", {{"method", "B"}, {"code", "14"}}).Increment();
  auto registration = metrics.AddCollector("expert-worker", [](Samples& samples) {
    samples.Counter(kGrpcErrors, 5, {{"method", "C"}});
    samples.Gauge(kReady, 1);
  });
  const std::string text = metrics.Render();
  EXPECT_EQ(Occurrences(text, "# TYPE switchyard_grpc_errors_total counter"), 1u);
  EXPECT_THAT(text, AllOf(HasSubstr(R"(code="13",method="A",service="gateway"} 2)"),
                          HasSubstr(R"(code="14",method="B",service="router"} 1)"),
                          HasSubstr(R"(method="C",service="expert-worker"} 5)"),
                          HasSubstr(R"(switchyard_ready{service="expert-worker"} 1)")));
}

TEST(Metrics, TheSameLabelsAreTheSameSeries) {
  Metrics metrics;
  auto& a = metrics.Counter(kRouterSteps, "router");
  auto& b = metrics.Counter(kRouterSteps, "router");
  EXPECT_EQ(&a, &b);
}

TEST(Metrics, HistogramsOfCollectorsAreCumulative) {
  Metrics metrics;
  auto registration = metrics.AddCollector("expert-worker", [](Samples& samples) {
    const double bounds[] = {1, 2, 4};
    const uint64_t counts[] = {3, 0, 2};
    samples.Histogram(kWorkerBatchRows, bounds, counts, 6, 40);
  });
  const std::string text = metrics.Render();
  EXPECT_THAT(text,
              AllOf(HasSubstr(R"(le="1"} 3)"), HasSubstr(R"(le="2"} 3)"), HasSubstr(R"(le="4"} 5)"),
                    HasSubstr(R"(le="+Inf"} 6)"),
                    HasSubstr("switchyard_worker_batch_rows_sum{service=\"expert-worker\"} 40"),
                    HasSubstr("_count{service=\"expert-worker\"} 6")));
}

TEST(Metrics, PowersOfTwoKeepTheirUnitAndTheirOverflow) {
  Metrics metrics;
  auto registration = metrics.AddCollector("router", [](Samples& samples) {
    const uint64_t counts[] = {1, 0, 3, 2};  // 0; 1; 2..3; the rest
    samples.PowersOfTwo(kRouterDispatchSeconds, counts, 100, 1e-3, {{"worker", "w"}});
  });
  const std::string text = metrics.Render();
  EXPECT_THAT(text, AllOf(HasSubstr(R"(le="0.001"} 1)"), HasSubstr(R"(le="0.002"} 1)"),
                          HasSubstr(R"(le="0.004"} 4)"), HasSubstr(R"(le="+Inf"} 6)"),
                          HasSubstr(R"(worker="w"} 0.1)")));
}

TEST(Metrics, CollectorEndsWithItsRegistration) {
  Metrics metrics;
  {
    auto registration =
        metrics.AddCollector("router", [](Samples& samples) { samples.Gauge(kReady, 1); });
    EXPECT_THAT(metrics.Render(), HasSubstr("switchyard_ready"));
  }
  EXPECT_THAT(metrics.Render(), Not(HasSubstr("switchyard_ready")));
}

std::string Get(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string out;
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
    const std::string request = "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n";
    EXPECT_EQ(::write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
    char buffer[4096];
    for (ssize_t n; (n = ::read(fd, buffer, sizeof buffer)) > 0;) out.append(buffer, n);
  }
  ::close(fd);
  return out;
}

TEST(Exposer, ServesTheMetricsOnAChosenPort) {
  auto metrics = std::make_shared<Metrics>();
  metrics->AddProcess("router", "1.2.3", "abc");
  auto exposer = Exposer::Start("127.0.0.1:0", metrics);
  ASSERT_TRUE(exposer.ok()) << exposer.status();
  int port = 0;
  ASSERT_EQ(std::sscanf((*exposer)->url().c_str(), "http://127.0.0.1:%d/metrics", &port), 1);
  const std::string answer = Get(port);
  EXPECT_THAT(answer, AllOf(HasSubstr("200 OK"), HasSubstr("commit=\"abc\""),
                            HasSubstr("version=\"1.2.3\"} 1"),
                            HasSubstr("switchyard_bugs_total{service=\"router\"} 0")));
  auto taken = Exposer::Start("127.0.0.1:" + std::to_string(port), metrics);
  EXPECT_FALSE(taken.ok());
  EXPECT_FALSE(Exposer::Start("unix:/tmp/x", metrics).ok());
}

}  // namespace
}  // namespace switchyard::telemetry
