#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>

#include "absl/strings/str_join.h"
#include "fmt/format.h"
#include "tools/cli/top.h"
#include "tools/cli/top_state.h"
#include "tools/cli/top_view.h"

namespace switchyard::cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

TEST(TopMetricsTest, LabelsAreSummedAndBucketsKept) {
  const MetricsText text = ParseMetrics(
      "# HELP a b\n# TYPE a counter\na{x=\"1\"} 2\na{x=\"}\\\" {\",y=\"2\"} 3\nb 4 1700000000\n"
      "h_bucket{service=\"g\",le=\"0.5\"} 1\nh_bucket{le=\"0.5\"} 2\nh_bucket{le=\"+Inf\"} 9\n"
      "broken{x=\"1\nbroken{} \nnan NaN\nc{} 1");
  EXPECT_EQ(text["a"], 5);
  EXPECT_EQ(text["b"], 4);
  EXPECT_EQ(text["c"], 1);
  EXPECT_EQ(text["nan"], 0);
  EXPECT_EQ(text["none"], 0);
  const auto& buckets = text.buckets.at("h_bucket");
  EXPECT_EQ(buckets.at(0.5), 3);
  EXPECT_EQ(buckets.size(), 2u);
}

TEST(TopMetricsTest, PercentilesAreOfWhatCameSince) {
  const double inf = std::numeric_limits<double>::infinity();
  const std::map<double, double> before = {{1, 100}, {2, 100}, {inf, 100}};
  const std::map<double, double> after = {{1, 100}, {2, 200}, {inf, 200}};
  EXPECT_NEAR(*PercentileBetween(before, after, 0.5), 1.5, 1e-9);
  EXPECT_NEAR(*PercentileBetween({}, after, 0.5), 1, 1e-9) << "all there is";
  EXPECT_NEAR(*PercentileBetween(after, after, 0.25), 0.5, 1e-9) << "nothing came: all there is";
  EXPECT_EQ(*PercentileBetween({}, {{1, 0}, {inf, 5}}, 0.99), 1) << "beyond the last bound";
  EXPECT_FALSE(PercentileBetween({}, {{1, 0}, {inf, 0}}, 0.5).has_value());
  EXPECT_FALSE(PercentileBetween({}, {}, 0.5).has_value());
}

// A router with two workers, of which the layers' first experts are the hottest.
json RouterJson(int layers, int experts, double retried) {
  json router = {
      {"router_id", "r0"},
      {"windows", json::parse(R"([{"seconds": 1, "spans": 2}, {"seconds": 10, "spans": 10},
                                             {"seconds": 60, "spans": 0}])")},
      {"engine", {{"running", 3}, {"waiting", 1}, {"kv_blocks", 10}, {"kv_blocks_used", 4}}},
      {"placement", {{"epoch", 8}, {"epoch_in_use", 7}, {"moving", 5}, {"orphans", 2}}},
      {"dispatch", {{"retried_rows", retried}}}};
  router["workers"] = json::parse(
      R"([{"address": "10.0.0.1:7000", "state": "up", "node": "a", "zone": "z", "window_rows": [40, 100, 0],
           "latency_p50_s": 0.002, "latency_p99_s": 0.05, "experts": 64, "free_bytes": 1073741824},
          {"address": "10.0.0.2:7000", "state": "connecting: refused", "ejected": true, "ejections": 3}])");
  for (int layer = 1; layer <= layers; ++layer) {
    router["layers"].push_back({{"layer", layer},
                                {"expert_imbalance", {2.0, 3.25, 0}},
                                {"worker_imbalance", {1.0, 1.5, 0}}});
    for (int e = 0; e < experts; ++e) {
      router["experts"].push_back({{"layer", layer},
                                   {"expert", e},
                                   {"window_rows", {0, e == 0 ? 400 : 10, 0}},
                                   {"workers", {"10.0.0.1:7000", "10.0.0.2:7000"}}});
    }
  }
  return router;
}

TopSample SampleAt(double at, double tokens, int layers = 4, int experts = 16) {
  TopSample sample;
  sample.at = at;
  sample.model = "tiny";
  sample.experts["routers"] = json::array({RouterJson(layers, experts, 10 * at)});
  sample.metrics.values["switchyard_gateway_output_tokens_total"] = tokens;
  sample.metrics.values["switchyard_gateway_open_requests"] = 6;
  return sample;
}

TopState State(int layers = 4, int experts = 16) {
  TopState state =
      MakeTopState(SampleAt(100, 1000, layers, experts), SampleAt(102, 1500, layers, experts), 10);
  state.url = "http://h:8000";
  return state;
}

TEST(TopStateTest, RatesComeFromTwoAnswersAndLoadsFromTheWindow) {
  const TopState state = State();
  EXPECT_EQ(state.gateway.tokens, 250);
  EXPECT_EQ(state.gateway.open, 6);
  ASSERT_EQ(state.routers.size(), 1u);
  EXPECT_EQ(state.routers[0].retried, 10);
  EXPECT_EQ(state.routers[0].running, 3);
  EXPECT_EQ(state.routers[0].kv_used, 0.4);
  EXPECT_EQ(state.routers[0].rows, 10);
  ASSERT_EQ(state.workers.size(), 2u);
  EXPECT_EQ(state.workers[0].rows, 10);
  EXPECT_EQ(state.workers[0].free_bytes, 1u << 30);
  EXPECT_EQ(state.workers[1].free_bytes, std::nullopt);
  ASSERT_EQ(state.experts.size(), 64u);
  EXPECT_EQ(state.experts[0].rows, 40);
  EXPECT_EQ(state.experts[0].replicas, 2);
  EXPECT_EQ(state.layers[0].expert_imbalance, 3.25);

  const TopSample now = SampleAt(102, 1500);
  EXPECT_EQ(MakeTopState(now, now, 1).workers[0].rows, 20) << "40 rows in 2 s";
  EXPECT_EQ(MakeTopState(now, now, 60).workers[0].rows, 0) << "a window that spans nothing yet";
  EXPECT_EQ(MakeTopState(now, now, 10).gateway.tokens, 0);
  EXPECT_EQ(MakeTopState(now, SampleAt(104, 100), 10).gateway.tokens, 50) << "started anew";
}

TEST(TopStateTest, RoutersAreAddedUpAndATroubledViewOfAWorkerWins) {
  TopSample now = SampleAt(100, 0);
  json other = RouterJson(4, 16, 0);
  other["router_id"] = "r1";
  other["workers"][0]["state"] = "refused: numerics";
  now.experts["routers"].push_back(other);
  const TopState state = MakeTopState(now, now, 10);
  ASSERT_EQ(state.workers.size(), 2u);
  EXPECT_EQ(state.workers[0].rows, 20);
  EXPECT_EQ(state.workers[0].state, "refused: numerics");
  EXPECT_EQ(state.experts[0].rows, 80);
}

TEST(TopStateTest, WhateverAServerSaysIsRead) {
  for (const char* text :
       {"{}", "null", R"({"routers": 7})", R"({"routers": [7, "x", {}, null]})",
        R"({"routers": [{"windows": {"a": 1}, "workers": [1, {"address": 3}], "layers": "x",
            "experts": [{"layer": -1, "expert": 2}, {"layer": 2147483647, "expert": 1}, {"layer": 1e300}],
            "engine": [], "dispatch": 3, "placement": {"epoch": -5, "moving": "x"}}]})"}) {
    TopSample sample;
    sample.experts = json::parse(text);
    const TopState state = MakeTopState(sample, sample, 10);
    EXPECT_TRUE(state.experts.empty()) << text;
    RenderTop(state, {.width = 80, .height = 24});
    ToJson(state);
  }
}

TEST(TopViewTest, AFrameShowsServicesAndTheMap) {
  const std::string text = absl::StrJoin(RenderTop(State(), {.width = 160}), "\n");
  for (const char* part : {"tiny at http://h:8000", "250 tokens/s", "6 open", "r0", "7 -> 8",
                           "10.0.0.1:7000", "2.0 ms", "1.0 GiB", "connecting",
                           "3.25 of experts, 1.50 of workers", "hottest  1/0 40/s x2"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
  // The first of 16 experts has far more than the mean, the others little.
  EXPECT_THAT(text, HasSubstr("      1  #" + std::string(15, ':') + "    3.25"));
}

TEST(TopViewTest, NoFrameIsLargerThanItsScreen) {
  for (const auto& [layers, experts] : {std::pair(0, 0), {4, 16}, {61, 256}}) {
    const TopState state = State(layers, experts);
    for (int width : {1, 7, 20, 31, 80, 200, 400}) {
      for (int height : {1, 2, 5, 10, 24, 60, 200}) {
        for (bool color : {false, true}) {
          const auto lines =
              RenderTop(state, {.width = width, .height = height, .color = color, .keys = true});
          EXPECT_LE(lines.size(), static_cast<size_t>(height)) << width << "x" << height;
          for (const std::string& line : lines) EXPECT_LE(ColumnsOf(line), width) << line;
        }
      }
    }
  }
}

TEST(TopViewTest, LayersAndExpertsShareALineAndTheHottestShows) {
  TopState state = State(61, 256);
  for (TopExpert& e : state.experts) e.rows = e.layer == 30 && e.expert == 128 ? 1000 : 1;
  const auto lines = RenderTop(state, {.width = 9 + 64 + 14, .height = 24});
  const auto at = std::ranges::find_if(
      lines, [](const std::string& line) { return line.find('#') != std::string::npos; });
  ASSERT_NE(at, lines.end());
  EXPECT_EQ(at->find('#'), 9u + 32u) << *at;
  EXPECT_EQ(std::ranges::count_if(
                lines, [](const std::string& line) { return line.find('#') != std::string::npos; }),
            1);
}

TEST(TopViewTest, EveryCellOfTheMapHasAsManyExperts) {
  TopState state = State(1, 128);
  for (TopExpert& e : state.experts) e.rows = 1;
  // 100 columns for 128 experts: 64 cells of two.
  const auto lines = RenderTop(state, {.width = 9 + 100 + 14});
  EXPECT_THAT(lines, testing::Contains(HasSubstr("      1  " + std::string(64, '-') + "    3.25")));
}

TEST(TopViewTest, NothingOfAServerReachesTheTerminalAsAnEscape) {
  TopState state = State();
  state.model = "a\x1b[2Jb\nc\xc3\xa9";
  state.workers[0].address = "\x1b]0;x\x07";
  state.routers[0].id = "\r\n\x9b";
  state.lost = "\x1b[31m";
  for (const std::string& line : RenderTop(state, {.width = 120, .height = 40})) {
    for (const char c : line) EXPECT_TRUE(c >= ' ' && c <= '~') << line;
  }
}

TEST(TopViewTest, ALostConnectionIsSaid) {
  TopState state = State();
  state.lost = "connection refused";
  EXPECT_THAT(RenderTop(state, {.width = 120})[1], HasSubstr("no answer: connection refused"));
  state.lost.clear();
  state.missing = "router r0: missing";
  EXPECT_THAT(RenderTop(state, {.width = 120})[1], HasSubstr("not ready: router r0: missing"));
}

TEST(TopViewTest, NumbersAreShort) {
  EXPECT_EQ(ShortSeconds(0), "-");
  EXPECT_EQ(ShortSeconds(0.00045), "450 us");
  EXPECT_EQ(ShortSeconds(0.0045), "4.5 ms");
  EXPECT_EQ(ShortSeconds(0.45), "450 ms");
  EXPECT_EQ(ShortSeconds(45), "45.0 s");
  EXPECT_EQ(ShortNumber(0), "0");
  EXPECT_EQ(ShortNumber(3.21), "3.2");
  EXPECT_EQ(ShortNumber(9321), "9321");
  EXPECT_EQ(ShortNumber(12345), "12.3k");
  EXPECT_EQ(ShortNumber(12345678), "12.3M");
}

TEST(TopCommandTest, WhatCannotBeMeantIsSaid) {
  EXPECT_THAT(std::string(RunTop({.interval = "1ms"}).message()), HasSubstr("--interval: \"1ms\""));
  EXPECT_THAT(std::string(RunTop({.interval = "soon"}).message()), HasSubstr("--interval"));
  EXPECT_THAT(std::string(RunTop({.window = "2s"}).message()), HasSubstr("--window: \"2s\""));
  EXPECT_THAT(std::string(RunTop({.http = {.api_key_file = "/none/keys"}}).message()),
              HasSubstr("/none/keys"));
}

}  // namespace
}  // namespace switchyard::cli
