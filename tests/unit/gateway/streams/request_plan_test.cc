#include "gateway/streams/request_plan.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "gateway/streams/field_error.h"
#include "services/base/status.h"
#include "tests/support/tiny_r1.h"

namespace switchyard::gateway {
namespace {

using ::switchyard::testing::TinyR1;
using ::switchyard::testing::TinyR1Dir;
using ::testing::HasSubstr;

// tiny-r1's texts with another vocab_size in config.json.
std::unique_ptr<ServedModel> WithVocab(int vocab_size) {
  namespace fs = std::filesystem;
  const fs::path from = TinyR1Dir();
  const fs::path to = ::testing::TempDir() + fmt::format("vocab_{}_{}", ::getpid(), vocab_size);
  fs::create_directories(to);
  for (const char* name : {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}) {
    fs::copy_file(from / name, to / name, fs::copy_options::overwrite_existing);
  }
  std::ifstream in(from / "config.json");
  nlohmann::json config = nlohmann::json::parse(in);
  config["vocab_size"] = vocab_size;
  std::ofstream(to / "config.json") << config;
  auto model = ServedModel::Load(to, "tiny-r1");
  EXPECT_TRUE(model.ok()) << model.status();
  fs::remove_all(to);
  return std::move(model).value();
}

v1::GenerateRequest Request(const std::string& text) {
  v1::GenerateRequest request;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &request)) << text;
  return request;
}

absl::StatusOr<RequestPlan> Plan(const std::string& text, int max_model_len = 4096) {
  return PlanRequest(Request(text), TinyR1(), {.max_model_len = max_model_len, .vocab = 2560}, 77);
}

TEST(RequestPlanTest, TakesDefaultsFromTheModelThenFromOpenAi) {
  const auto plan = Plan(R"(prompt: "What is 2+2?")");
  ASSERT_TRUE(plan.ok()) << plan.status();
  const auto& s = plan->submit.sampling();
  EXPECT_EQ(s.temperature(), 0);  // tiny-r1 says do_sample false
  EXPECT_EQ(s.top_p(), 1);
  EXPECT_EQ(s.top_k(), 0);
  EXPECT_EQ(s.repetition_penalty(), 1);
  EXPECT_EQ(s.seed(), 77u);
  EXPECT_EQ(plan->submit.max_tokens(), 512);  // its max_new_tokens
  EXPECT_EQ(plan->submit.n(), 1);
  EXPECT_EQ(plan->submit.top_logprobs(), -1);
  EXPECT_EQ(plan->submit.prompt(0), 0);  // BOS
}

TEST(RequestPlanTest, TheRequestWins) {
  const auto plan = Plan(R"(prompt: "x" max_tokens: 9 min_tokens: 3 n: 4 priority: 2 cache_salt: "s"
    sampling { temperature: 0.5 top_k: -1 top_p: 0.25 seed: 5 ignore_eos: true
               logit_bias { key: 3 value: -1 } } stop_token_ids: 8 top_logprobs: 0
    add_special_tokens: false)");
  ASSERT_TRUE(plan.ok()) << plan.status();
  const auto& submit = plan->submit;
  EXPECT_EQ(submit.sampling().temperature(), 0.5f);
  EXPECT_EQ(submit.sampling().top_k(), 0);  // -1 and 0 both mean off
  EXPECT_EQ(submit.sampling().seed(), 5u);
  EXPECT_EQ(submit.sampling().logit_bias().at(3), -1);
  EXPECT_TRUE(submit.sampling().ignore_eos());
  EXPECT_EQ(submit.max_tokens(), 9);
  EXPECT_EQ(submit.min_tokens(), 3);
  EXPECT_EQ(submit.n(), 4);
  EXPECT_EQ(submit.top_logprobs(), 0);
  EXPECT_NE(submit.prompt(0), 0);
}

TEST(RequestPlanTest, OutputsEndAtTheModelsLength) {
  const auto plan = Plan("prompt_ids { ids: [5, 6, 7] } max_tokens: 1000", 100);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->submit.max_tokens(), 97);
}

TEST(RequestPlanTest, ChatsAreRenderedAndHoldOneBos) {
  const auto plan = Plan(R"(chat { messages { role: "user" content: "hi" } })");
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->submit.prompt(0), 0);
  EXPECT_NE(plan->submit.prompt(1), 0);
  EXPECT_TRUE(plan->reasoning.has_value());
  EXPECT_TRUE(plan->starts_in_reasoning);  // the template opens <think>
  const auto closed = Plan(R"(chat { messages { role: "user" content: "hi" }
                                     add_generation_prompt: false })");
  EXPECT_FALSE(closed->starts_in_reasoning);
  // The developer's messages are the system's for a template that does not know the role.
  const auto developer = Plan(R"(chat { messages { role: "developer" content: "be brief" }
                                        messages { role: "user" content: "hi" } })");
  const auto system = Plan(R"(chat { messages { role: "system" content: "be brief" }
                                     messages { role: "user" content: "hi" } })");
  EXPECT_EQ(developer->submit.prompt_size(), system->submit.prompt_size());
  EXPECT_GT(developer->submit.prompt_size(), plan->submit.prompt_size());
}

TEST(RequestPlanTest, OverlongPromptsAreRefusedWithBothNumbers) {
  const auto plan = Plan("prompt_ids { ids: [5, 6, 7] }", 3);
  EXPECT_EQ(FieldOf(plan.status()), "prompt");
  EXPECT_THAT(std::string(plan.status().message()),
              HasSubstr("the prompt has 3 tokens; the model takes 3"));
  // So long that it need not be tokenised.
  const auto huge = Plan("prompt: \"" + std::string(1 << 20, 'x') + "\"", 16);
  EXPECT_THAT(std::string(huge.status().message()), HasSubstr("has at least "));
}

TEST(RequestPlanTest, ATextWhoseIdsTheModelLacksIsRefused) {
  const auto small = WithVocab(300);
  const ModelInfo info = {.max_model_len = 4096, .vocab = 300};
  const auto plan = PlanRequest(Request(R"(prompt: "What is 2+2?")"), *small, info, 77);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FieldOf(plan.status()), "prompt");
  EXPECT_THAT(std::string(plan.status().message()),
              ::testing::MatchesRegex(
                  "prompt: the tokenizer gives id [0-9]+, but the model has only 300 ids"));
}

TEST(ServedModelTest, TellsOfIdsThatTheTokenizerLacks) {
  const auto log_of = [](int vocab_size) {
    ::testing::internal::CaptureStderr();
    WithVocab(vocab_size);
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_THAT(log_of(2600), HasSubstr("the tokenizer lacks 40 of the model's 2600 ids"));
  EXPECT_EQ(log_of(2560), "");
}

struct BadCase {
  const char* fields;
  const char* param;
  const char* message;
};
void PrintTo(const BadCase& c, std::ostream* os) { *os << c.fields; }

class BadRequestTest : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadRequestTest, NamesTheFieldAndTheRange) {
  const std::string fields = GetParam().fields;
  const bool has_input = fields.find("prompt") == 0 || fields.find("chat") == 0;
  const auto plan = Plan(fields + (has_input ? "" : " prompt: \"x\""));
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FieldOf(plan.status()), GetParam().param);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadRequestTest,
    ::testing::Values(
        BadCase{"sampling { temperature: 2.5 }", "temperature", "2.5 is not in [0, 2]"},
        BadCase{"sampling { temperature: nan }", "temperature", "not in [0, 2]"},
        BadCase{"sampling { top_k: -2 }", "top_k", "-2 is not in [-1"},
        BadCase{"sampling { top_p: 0 }", "top_p", "0 is not in (0, 1]"},
        BadCase{"sampling { min_p: 1.5 }", "min_p", "not in [0, 1]"},
        BadCase{"sampling { repetition_penalty: 0 }", "repetition_penalty", "not in (0, 10]"},
        BadCase{"sampling { presence_penalty: 3 }", "presence_penalty", "not in [-2, 2]"},
        BadCase{"sampling { frequency_penalty: -3 }", "frequency_penalty", "not in [-2, 2]"},
        BadCase{"sampling { logit_bias { key: 2560 value: 1 } }", "logit_bias", "not in [0, 2559]"},
        BadCase{"sampling { logit_bias { key: 1 value: 101 } }", "logit_bias", "[-100, 100]"},
        BadCase{"max_tokens: 0", "max_tokens", "less than 1"},
        BadCase{"min_tokens: -1", "min_tokens", "less than 0"},
        BadCase{"min_tokens: 9 max_tokens: 8", "min_tokens", "more than max_tokens, 8"},
        BadCase{"priority: 101", "priority", "101 is not in [-100, 100]"},
        BadCase{"priority: -101", "priority", "not in"},
        BadCase{"n: 129", "n", "129 is not in [1, 128]"}, BadCase{"n: -1", "n", "not in"},
        BadCase{"stop: ''", "stop", "0 bytes, allowed are 1 to 1024"},
        BadCase{"stop_token_ids: 2560", "stop_token_ids", "2560 at index 0 is not in [0, 2559]"},
        BadCase{"top_logprobs: 21", "top_logprobs", "not in [0, 20]"},
        BadCase{"prompt_ids { ids: [1, -1] }", "prompt", "-1 at index 1"},
        BadCase{"prompt_ids { ids: [2560] }", "prompt", "not in [0, 2559]"},
        BadCase{"prompt_ids { }", "prompt", "no tokens"},
        BadCase{"chat { }", "messages", "is empty"},
        BadCase{"chat { messages { role: 'user' content: 'x' } } echo: true", "echo", "chat"},
        BadCase{"chat { messages { role: 'user' content: 'x' } chat_template_kwargs: '[]' }",
                "chat_template_kwargs", "not a JSON object"}));

TEST(RequestPlanTest, NeedsAPromptAndTheServedModel) {
  EXPECT_EQ(FieldOf(Plan("n: 1").status()), "prompt");
  const auto other = Plan(R"(model: "gpt-5" prompt: "x")");
  EXPECT_EQ(other.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("the model is \"tiny-r1\""));
  EXPECT_TRUE(Plan(R"(model: "tiny-r1" prompt: "x")").ok());
}

absl::StatusOr<GenerationDefaults> Defaults(const char* generation_config) {
  return ReadGenerationDefaults(nlohmann::json::parse(generation_config));
}

TEST(GenerationDefaultsTest, ReadsNumbersAndNamesWhatIsWrong) {
  const auto sampled = Defaults(
      R"({"do_sample":true,"temperature":0.6,"top_p":0.95,"top_k":20,"eos_token_id":[1,2]})");
  EXPECT_EQ(sampled->temperature, 0.6f);
  EXPECT_EQ(sampled->top_k, 20);
  EXPECT_FALSE(sampled->min_p.has_value());
  EXPECT_EQ(Defaults(R"({"do_sample":false,"temperature":0.6})")->temperature, 0.0f);
  EXPECT_THAT(std::string(Defaults(R"({"top_p":"x"})").status().message()),
              HasSubstr("generation_config.json: top_p"));
}

TEST(GenerationDefaultsTest, ChecksRangesAndNamesTheFileAndTheKey) {
  for (const char* text :
       {R"({"temperature":-1})", R"({"temperature":3})", R"({"top_k":1e30})", R"({"top_k":1.5})",
        R"({"top_k":-2})", R"({"top_p":0})", R"({"top_p":1.5})", R"({"min_p":2})",
        R"({"repetition_penalty":0})", R"({"max_new_tokens":0})"}) {
    const auto defaults = Defaults(text);
    ASSERT_FALSE(defaults.ok()) << text;
    const std::string key = std::string(text).substr(2, std::string(text).find("\":") - 2);
    EXPECT_THAT(std::string(defaults.status().message()),
                HasSubstr("generation_config.json: " + key + " is "));
  }
  EXPECT_EQ(Defaults(R"({"top_k":50.0,"top_p":1})")->top_k, 50);
}

}  // namespace
}  // namespace switchyard::gateway
