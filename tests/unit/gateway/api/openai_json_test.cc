// Tables of requests as clients write them, and what becomes of them.
#include "gateway/api/openai_json.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include "gateway/api/json_text.h"
#include "gateway/streams/field_error.h"

namespace switchyard::gateway {
namespace {

using ::testing::HasSubstr;

template <typename Message>
Message Proto(const std::string& text) {
  Message message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message)) << text;
  return message;
}

template <typename Message>
void ExpectSame(const Message& actual, const std::string& expected) {
  const auto want = Proto<Message>(expected);
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(actual, want))
      << "found\n"
      << actual.DebugString() << "expected\n"
      << want.DebugString();
}

const char kHi[] = R"("messages":[{"role":"user","content":"hi"}])";
const std::string kHiProto = R"(chat { messages { role: "user" content: "hi" } })";

TEST(ParseChatCallTest, ReadsEveryField) {
  const auto call = ParseChatCall(R"({"model":"m",)" + std::string(kHi) + R"(,
    "temperature":0.5,"top_k":3,"top_p":0.9,"min_p":0.1,"repetition_penalty":1.1,
    "presence_penalty":0.2,"frequency_penalty":-0.2,"logit_bias":{"7":-100,"8":1.5},"seed":42,
    "ignore_eos":true,"max_completion_tokens":9,"max_tokens":5,"min_tokens":2,"n":2,
    "stop":["a","b"],"stop_token_ids":[1,2],"include_stop_str_in_output":true,"logprobs":true,
    "top_logprobs":3,"return_token_ids":true,"return_routed_experts":true,
    "skip_special_tokens":false,"priority":-1,"cache_salt":"s","request_id":"r","user":"u",
    "add_generation_prompt":false,"chat_template_kwargs":{"enable_thinking":false},
    "reasoning_effort":"low","stream":true,"stream_options":{"include_usage":true},
    "tools":[],"tool_choice":"none","response_format":{"type":"text"},"some_new_field":{"x":[1]}})");
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_TRUE(call->chat && call->stream && call->include_usage);
  ExpectSame(call->requests[0], R"(
    model: "m"
    chat { messages { role: "user" content: "hi" } add_generation_prompt: false
           chat_template_kwargs: '{"enable_thinking":false,"reasoning_effort":"low"}' }
    sampling { temperature: 0.5 top_k: 3 top_p: 0.9 min_p: 0.1 repetition_penalty: 1.1
               presence_penalty: 0.2 frequency_penalty: -0.2 logit_bias { key: 7 value: -100 }
               logit_bias { key: 8 value: 1.5 } seed: 42 ignore_eos: true }
    max_tokens: 9 min_tokens: 2 n: 2 stop: "a" stop: "b" stop_token_ids: 1 stop_token_ids: 2
    include_stop_str_in_output: true top_logprobs: 3 return_token_ids: true
    return_routed_experts: true skip_special_tokens: false priority: -1 cache_salt: "s"
    request_id: "r")");
}

TEST(ParseChatCallTest, NullMeansNotGiven) {
  const auto call = ParseChatCall("{" + std::string(kHi) + R"(,"temperature":null,"max_tokens":null,
    "stop":null,"stream":null,"stream_options":null,"tools":null,"response_format":null,"n":null,
    "logprobs":null,"top_logprobs":null,"seed":null,"logit_bias":null,"suffix":null})");
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_FALSE(call->stream);
  ExpectSame(call->requests[0], "sampling {} " + kHiProto);
}

TEST(ParseChatCallTest, ReadsConversations) {
  const auto call = ParseChatCall(R"({"messages":[
    {"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
    {"role":"user","content":"q","name":"bob"},
    {"role":"assistant","content":null,"reasoning_content":"hm","tool_calls":[
      {"id":"c1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},
    {"role":"tool","tool_call_id":"c1","content":"4"}]})");
  ASSERT_TRUE(call.ok()) << call.status();
  ExpectSame(call->requests[0].chat(), R"(
    messages { role: "developer" content: "a\nb" }
    messages { role: "user" content: "q" name: "bob" }
    messages { role: "assistant" reasoning_content: "hm"
               tool_calls { id: "c1" type: "function" name: "f" arguments: "{\"x\":1}" } }
    messages { role: "tool" tool_call_id: "c1" content: "4" })");
}

struct BadCase {
  const char* fields;   // of the body
  const char* param;    // that the error names
  const char* message;  // a part of it
};
void PrintTo(const BadCase& c, std::ostream* os) { *os << c.fields; }

class BadChatTest : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadChatTest, IsRefusedByItsField) {
  const std::string fields = GetParam().fields;
  const bool has_messages = fields.find("\"messages\"") != std::string::npos;
  const auto call =
      ParseChatCall("{" + fields + (has_messages ? "" : "," + std::string(kHi)) + "}");
  ASSERT_FALSE(call.ok());
  EXPECT_EQ(call.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FieldOf(call.status()), GetParam().param);
  EXPECT_THAT(std::string(call.status().message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadChatTest,
    ::testing::Values(
        BadCase{R"("temperature":"hot")", "temperature", "expected a number, found string"},
        BadCase{R"("n":1.5)", "n", "expected an integer"}, BadCase{R"("n":0)", "n", "less than 1"},
        BadCase{R"("max_tokens":3000000000)", "max_tokens", "32 bits"},
        BadCase{R"("stream":1)", "stream", "true or false"},
        BadCase{R"("stop":5)", "stop", "a string or an array"},
        BadCase{R"("stop":["a",1])", "stop", "a string or an array"},
        BadCase{R"("stop_token_ids":["1"])", "stop_token_ids", "token ids"},
        BadCase{R"("seed":"x")", "seed", "an integer"},
        BadCase{R"("logit_bias":{"x":1})", "logit_bias", "\"x\" is not a token id"},
        BadCase{R"("logit_bias":{"1":101})", "logit_bias", "not in [-100, 100]"},
        BadCase{R"("logit_bias":[])", "logit_bias", "an object"},
        BadCase{R"("stream_options":{"include_usage":true})", "stream_options", "\"stream\": true"},
        BadCase{R"("stream":true,"stream_options":{"include_usage":1})",
                "stream_options.include_usage", "true or false"},
        BadCase{R"("tools":[{"type":"function"}])", "tools", "not supported"},
        BadCase{R"("tool_choice":"required")", "tool_choice", "none"},
        BadCase{R"("functions":[{}])", "functions", "not supported"},
        BadCase{R"("response_format":{"type":"json_object"})", "response_format", "text"},
        BadCase{R"("modalities":["text","audio"])", "modalities", "text"},
        BadCase{R"("audio":{"voice":"x"})", "audio", "not supported"},
        BadCase{R"("best_of":3)", "best_of", "choosing is not supported"},
        BadCase{R"("suffix":"x")", "suffix", "not supported"},
        BadCase{R"("top_logprobs":2)", "top_logprobs", "logprobs"},
        BadCase{R"("echo":true)", "echo", "not supported"},
        BadCase{R"("chat_template_kwargs":"x")", "chat_template_kwargs", "an object"},
        BadCase{R"("messages":[])", "messages", "at least one"},
        BadCase{R"("messages":"hi")", "messages", "at least one"},
        BadCase{R"("messages":["hi"])", "messages[0]", "not an object"},
        BadCase{R"("messages":[{"role":"king","content":"x"}])", "messages[0].role", "\"king\""},
        BadCase{R"("messages":[{"content":"x"}])", "messages[0].role", "is missing"},
        BadCase{R"("messages":[{"role":"","content":"x"}])", "messages[0].role", "\"\" is not"},
        BadCase{R"("messages":[{"role":"user"}])", "messages[0].content", "missing"},
        BadCase{R"("messages":[{"role":"user","content":5}])", "messages[0].content", "a string"},
        BadCase{R"("messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}])",
                "messages[0].content[0].type", "\"image_url\" is not supported"},
        BadCase{R"("messages":[{"role":"user","content":[{"type":"text"}]}])",
                "messages[0].content[0].text", "a string"},
        BadCase{R"("messages":[{"role":"user","content":["x"]}])", "messages[0].content[0].type",
                "not an object"},
        BadCase{R"("messages":[{"role":"assistant","tool_calls":[{}]}])",
                "messages[0].tool_calls[0].function", "missing"}));

TEST(ParseBodyTest, RefusesWhatIsNotAnObject) {
  for (const char* body : {"", "{", "[1]", "\"x\"", "{\"a\":1e999}", "{\"a\":\"\xff\"}", "{} x"}) {
    EXPECT_EQ(ParseChatCall(body).status().code(), absl::StatusCode::kInvalidArgument) << body;
  }
  EXPECT_THAT(std::string(ParseChatCall(R"({"a":tru})").status().message()), HasSubstr("byte 9"));
  const std::string deep(1'000'000, '[');
  EXPECT_THAT(std::string(ParseChatCall("{\"a\":" + deep).status().message()), HasSubstr("nested"));
  // Brackets in strings are no depth.
  EXPECT_TRUE(ParseChatCall("{\"user\":\"" + std::string(1000, '[') + "\\\"[\"," + kHi + "}").ok());
}

TEST(ParseCompletionCallTest, TakesEveryFormOfPrompt) {
  const auto prompts = [](const std::string& prompt) {
    const auto call = ParseCompletionCall(R"({"prompt":)" + prompt + "}");
    EXPECT_TRUE(call.ok()) << call.status();
    std::string out;
    for (const auto& request : call->requests) {
      if (request.has_prompt()) out += "text " + request.prompt() + ";";
      if (!request.has_prompt_ids()) continue;
      out += "ids";
      for (const int id : request.prompt_ids().ids()) out += " " + std::to_string(id);
      out += ";";
    }
    return out;
  };
  EXPECT_EQ(prompts(R"("a")"), "text a;");
  EXPECT_EQ(prompts(R"(["a","b"])"), "text a;text b;");
  EXPECT_EQ(prompts("[1,2]"), "ids 1 2;");
  EXPECT_EQ(prompts("[[1,2],[3]]"), "ids 1 2;ids 3;");
  EXPECT_EQ(prompts("[[]]"), "ids;");
}

TEST(ParseCompletionCallTest, HasOpenAisDefaults) {
  const auto call = ParseCompletionCall(R"({"prompt":"a","logprobs":2,"echo":true})");
  ASSERT_TRUE(call.ok());
  ExpectSame(call->requests[0],
             R"(prompt: "a" max_tokens: 16 top_logprobs: 2 echo: true sampling {})");
}

TEST(ParseCompletionCallTest, RefusesOtherPrompts) {
  const std::string many = "[" + [] {
    std::string all = "\"x\"";
    for (int i = 0; i < kPromptsMax; ++i) all += ",\"x\"";
    return all;
  }() + "]";
  for (const std::string& prompt :
       {std::string("null"), std::string("5"), std::string("[]"), std::string("{}"),
        std::string(R"(["a",1])"), std::string(R"([1,"a"])"), std::string("[[1],2]"),
        std::string("[1.5]"), std::string("[99999999999]"), many}) {
    const auto call = ParseCompletionCall(R"({"prompt":)" + prompt + "}");
    ASSERT_FALSE(call.ok()) << prompt;
    EXPECT_EQ(FieldOf(call.status()), "prompt");
  }
  EXPECT_EQ(FieldOf(ParseCompletionCall("{}").status()), "prompt");
  EXPECT_EQ(FieldOf(ParseCompletionCall(R"({"prompt":"a","suffix":"b"})").status()), "suffix");
}

TEST(ParseTokenizeCallTest, TakesTextChatsAndIds) {
  ExpectSame(*ParseTokenizeCall(R"({"prompt":"a","add_special_tokens":false})"),
             R"(prompt: "a" add_special_tokens: false)");
  ExpectSame(*ParseTokenizeCall("{" + std::string(kHi) + "}"), kHiProto);
  EXPECT_EQ(FieldOf(ParseTokenizeCall("{}").status()), "prompt");
  EXPECT_EQ(FieldOf(ParseTokenizeCall(R"({"prompt":1})").status()), "prompt");
  ExpectSame(*ParseDetokenizeCall(R"({"tokens":[1,2]})"), "ids: 1 ids: 2");
  EXPECT_EQ(FieldOf(ParseDetokenizeCall(R"({"tokens":["a"]})").status()), "tokens");
}

TEST(JsonTextTest, EscapesAndRepairs) {
  const auto written = [](std::string_view text) {
    std::string out;
    AppendJsonString(text, &out);
    return out;
  };
  EXPECT_EQ(written("a\"\\\n\t\r\x01\x7f/"), "\"a\\\"\\\\\\n\\t\\r\\u0001\\u007f/\"");
  EXPECT_EQ(written("小😀"), "\"小😀\"");
  EXPECT_EQ(written("a\xf0\x9f\x98"), "\"a\uFFFD\uFFFD\uFFFD\"");  // cut off
  EXPECT_EQ(written("\xed\xa0\x80"), "\"\uFFFD\uFFFD\uFFFD\"");    // a surrogate
  EXPECT_EQ(written("\xc0\xaf"), "\"\uFFFD\uFFFD\"");              // longer than needed
  std::string numbers;
  AppendJsonFloat(-0.5f, &numbers);
  numbers += ' ';
  AppendJsonFloat(-std::numeric_limits<float>::infinity(), &numbers);
  EXPECT_EQ(numbers, "-0.5 -9999.0");
}

}  // namespace
}  // namespace switchyard::gateway
