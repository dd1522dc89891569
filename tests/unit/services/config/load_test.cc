#include "services/config/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>

#include "services/config/build_info.h"
#include "switchyard/config/v1/gateway.pb.h"
#include "switchyard/config/v1/router.pb.h"
#include "switchyard/config/v1/serve.pb.h"
#include "switchyard/config/v1/worker.pb.h"

namespace switchyard::config {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class LoadTest : public ::testing::Test {
 protected:
  absl::StatusOr<Outcome> Run(std::vector<const char*> args) {
    args.insert(args.begin(), "switchyard-router");
    Program program{.name = "switchyard-router",
                    .description = "Routes.",
                    .examples = {"switchyard-router --model DIR --workers 127.0.0.1:8200"}};
    config_.Clear();
    return Load(
        program, static_cast<int>(args.size()), args.data(),
        [this](const char* name) -> const char* {
          auto it = environment_.find(name);
          return it == environment_.end() ? nullptr : it->second.c_str();
        },
        out_, &config_);
  }
  std::string Error(std::vector<const char*> args) {
    auto result = Run(std::move(args));
    return result.ok() ? "no error" : std::string(result.status().message());
  }
  std::string File(const std::string& text) {
    const std::string path = ::testing::TempDir() + "config_" + std::to_string(::getpid()) + "_" +
                             ::testing::UnitTest::GetInstance()->current_test_info()->name() +
                             ".json";
    std::ofstream(path) << text;
    return path;
  }

  std::map<std::string, std::string> environment_;
  std::ostringstream out_;
  v1::RouterConfig config_;
};

TEST_F(LoadTest, DefaultsAreFilledIn) {
  auto outcome = Run({"--model", "/m", "--workers", "a:1,b:2", "--workers", "unix:/tmp/w"});
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(*outcome, Outcome::kRun);
  EXPECT_EQ(config_.model().model(), "/m");
  EXPECT_THAT(config_.workers(), ElementsAre("a:1", "b:2", "unix:/tmp/w"));
  EXPECT_EQ(config_.listen(), "127.0.0.1:8100");
  EXPECT_EQ(config_.engine().max_queue(), 1024);
  EXPECT_EQ(config_.weights().dtype(), "bfloat16");
  EXPECT_FALSE(config_.weights().no_weight_check());
  EXPECT_FALSE(config_.engine().has_kv_memory());
}

TEST_F(LoadTest, FlagWinsOverEnvironmentOverFileOverDefault) {
  const std::string file = File(R"({"model": "/file", "workers": ["f:1"], "max_queue": 1,
      "max_running": 1, "threads": 1, "allow_mixed_numerics": true})");
  environment_ = {{"SWITCHYARD_MAX_QUEUE", "2"},
                  {"SWITCHYARD_MAX_RUNNING", "2"},
                  {"SWITCHYARD_WORKERS", "e:1,e:2"}};
  auto outcome = Run({"--config", file.c_str(), "--max-queue", "3", "--no-weight-check"});
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(config_.engine().max_queue(), 3);
  EXPECT_EQ(config_.engine().max_running(), 2);
  EXPECT_EQ(config_.compute().threads(), 1);
  EXPECT_EQ(config_.engine().max_batch_tokens(), 2048);
  EXPECT_THAT(config_.workers(), ElementsAre("e:1", "e:2"));
  EXPECT_TRUE(config_.allow_mixed_numerics());
  EXPECT_TRUE(config_.weights().no_weight_check());
  ASSERT_TRUE(Run({"--config", file.c_str(), "--allow-mixed-numerics=false"}).ok());
  EXPECT_FALSE(config_.allow_mixed_numerics());
}

TEST_F(LoadTest, UnknownKeyIsNamedWithASuggestion) {
  const std::string file = File(R"({"max_qeue": 1})");
  EXPECT_THAT(Error({"--config", file.c_str()}),
              AllOf(HasSubstr(file), HasSubstr("\"max_qeue\""), HasSubstr("max_queue?")));
  EXPECT_THAT(Error({"--max-qeue", "1"}),
              AllOf(HasSubstr("--max-qeue"), HasSubstr("did you mean --max-queue?")));
}

TEST_F(LoadTest, FileOfTheWrongShapeIsRefused) {
  EXPECT_THAT(Error({"--config", File("[1]").c_str()}), HasSubstr("is not a JSON object"));
  EXPECT_THAT(Error({"--config", File("{\"model\":").c_str()}),
              HasSubstr(".json: not valid JSON at line 1, column 10: syntax error"));
  EXPECT_THAT(Error({"--config", File(R"({"max_queue": "1"})").c_str()}),
              HasSubstr("max_queue: \"1\" is not an integer"));
  EXPECT_THAT(Error({"--config", File(R"({"max_queue": 1.5})").c_str()}),
              HasSubstr("max_queue: 1.5 is not an integer"));
  EXPECT_THAT(Error({"--config", File(R"({"workers": [1]})").c_str()}), HasSubstr("workers: 1"));
  EXPECT_THAT(Error({"--config", "/nowhere.json"}), HasSubstr("/nowhere.json"));
}

TEST_F(LoadTest, BadValuesNameTheFlagAndWhatIsExpected) {
  const std::vector<std::pair<std::vector<const char*>, std::vector<const char*>>> cases = {
      {{"--max-queue", "0"}, {"--max-queue", "from 1 to 1048576"}},
      {{"--max-queue", "many"}, {"--max-queue", "\"many\""}},
      {{"--dtype", "int4"}, {"--dtype", "int4", "bfloat16, float32"}},
      {{"--listen", "8100"}, {"--listen", "HOST:PORT"}},
      {{"--listen", "h:70000"}, {"--listen", "65535"}},
      {{"--workers", "a:1,"}, {"--workers", "empty item"}},
      {{"--kv-memory", "lots"}, {"--kv-memory", "4GiB"}},
      {{"--kv-memory", "9"}, {"--kv-memory: \"9\" has no unit", "512MiB"}},
      {{"--drain-timeout", "-1s"}, {"--drain-timeout", "30s"}},
      {{"stray"}, {"unknown argument stray"}},
  };
  for (const auto& [args, expected] : cases) {
    const std::string error = Error(args);
    for (const char* part : expected) EXPECT_THAT(error, HasSubstr(part));
  }
  environment_ = {{"SWITCHYARD_THREADS", "x"}};
  EXPECT_THAT(Error({}), HasSubstr("SWITCHYARD_THREADS"));
}

TEST_F(LoadTest, MissingRequiredKnobSaysHowToGiveIt) {
  EXPECT_THAT(Error({"--workers", "a:1"}),
              AllOf(HasSubstr("--model is missing"), HasSubstr("SWITCHYARD_MODEL")));
}

TEST_F(LoadTest, AKnobThatSaysNothingWithoutAnotherIsRefused) {
  EXPECT_THAT(Error({"--model", "/m", "--workers", "a:1", "--balance-min-replicas", "2"}),
              HasSubstr("--balance-min-replicas says nothing without --balance"));
  EXPECT_TRUE(
      Run({"--model", "/m", "--workers", "a:1", "--balance", "1m", "--balance-min-replicas", "2"})
          .ok());
  environment_ = {{"SWITCHYARD_ETCD_PREFIX", "/moe"}};
  EXPECT_THAT(Error({"--model", "/m", "--workers", "a:1"}),
              HasSubstr("--etcd-prefix says nothing without --etcd"));
  EXPECT_TRUE(Run({"--model", "/m", "--etcd", "http://h:1"}).ok());
}

TEST_F(LoadTest, HelpVersionAndPrintConfigExit) {
  EXPECT_EQ(*Run({"--help"}), Outcome::kExit);
  EXPECT_THAT(out_.str(), AllOf(HasSubstr("(required)"), HasSubstr("(required, or --etcd)"),
                                HasSubstr("--max-queue"), HasSubstr("Scheduling and memory"),
                                HasSubstr("(default 1024)"), HasSubstr("Examples:"),
                                HasSubstr("--workers 127.0.0.1:8200")));
  out_.str("");
  EXPECT_EQ(*Run({"--version"}), Outcome::kExit);
  EXPECT_EQ(out_.str(), "switchyard-router " + Version() + " (" + Commit() + ")\n");
  out_.str("");
  EXPECT_EQ(*Run({"--model", "/m", "--workers", "a:1", "--print-config"}), Outcome::kExit);
  // What is printed can be given back as --config.
  v1::RouterConfig again;
  ASSERT_TRUE(ApplyJson("printed", out_.str(), &again).ok());
  EXPECT_EQ(again.SerializeAsString(), config_.SerializeAsString());
  const std::string printed = File(out_.str());
  EXPECT_EQ(*Run({"--config", printed.c_str()}), Outcome::kRun);
}

TEST(Load, PositionalModelAndEveryConfigProto) {
  v1::ServeConfig serve;
  const char* args[] = {"switchyard serve", "/models/tiny", "--http", "127.0.0.1:0"};
  std::ostringstream out;
  auto outcome = Load(
      {.name = "switchyard serve", .positional = "model"}, 4, args,
      [](const char*) -> const char* { return nullptr; }, out, &serve);
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(serve.model().model(), "/models/tiny");
  EXPECT_EQ(serve.front().http(), "127.0.0.1:0");
  EXPECT_EQ(serve.front().grpc(), "127.0.0.1:8001");
  v1::GatewayConfig gateway;
  EXPECT_TRUE(ApplyJson("f", R"({"routers": ["r:1"], "router_tls_ca": "ca.pem"})", &gateway).ok());
  EXPECT_EQ(gateway.upstream_tls().router_tls_ca(), "ca.pem");
  v1::WorkerConfig worker;
  EXPECT_TRUE(ApplyJson("f", R"({"experts": "0-63"})", &worker).ok());
  EXPECT_THAT(std::string(ApplyJson("f", R"({"experts": "foo"})", &worker).message()),
              HasSubstr("f: experts: \"foo\" is no list"));
}

}  // namespace
}  // namespace switchyard::config
