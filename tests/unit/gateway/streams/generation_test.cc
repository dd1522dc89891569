// The pipeline over a real RouterClient and a router whose tokens are scripted.
#include "gateway/streams/generation.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "gateway/streams/field_error.h"
#include "gateway/streams/generator.h"
#include "services/rpc/channel.h"
#include "tests/support/fake_router.h"
#include "tests/support/tiny_r1.h"

namespace switchyard::gateway {
namespace {

using ::switchyard::testing::CancelRequest;
using ::switchyard::testing::FakeRouter;
using ::switchyard::testing::IdOf;
using ::switchyard::testing::Ids;
using ::switchyard::testing::Submit;
using ::switchyard::testing::TinyR1;
using ::switchyard::testing::Token;
using ::switchyard::testing::TokensOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(20);

std::vector<int32_t> operator+(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

class Sink : public ChunkSink {
 public:
  bool OnChunk(const v1::GenerateResponse& chunk) override {
    absl::MutexLock lock(&mutex_);
    chunks.push_back(chunk);
    for (const v1::Choice& choice : chunk.choices()) {
      text[choice.index()] += choice.text();
      reasoning[choice.index()] += choice.reasoning_content();
      if (choice.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) last[choice.index()] = choice;
    }
    if (chunk.has_usage()) usage = chunk.usage();
    return static_cast<int>(chunks.size()) < refuse_at;
  }
  void OnEnd(const absl::Status& end, int retry_after) override {
    absl::MutexLock lock(&mutex_);
    ended = true;
    status = end;
    retry_after_ms = retry_after;
  }
  bool WaitForEnd() {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&ended), kPatience);
  }
  bool WaitForChunks(size_t n) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&] { return chunks.size() >= n; };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience);
  }
  bool WaitForText(int choice, const std::string& wanted) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&] { return text[choice] == wanted; };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience);
  }

  int refuse_at = 1 << 30;  // the n-th chunk and later ones are not taken
  std::vector<v1::GenerateResponse> chunks;
  std::map<int, std::string> text, reasoning;
  std::map<int, v1::Choice> last;
  v1::Usage usage;
  bool ended = false;
  absl::Status status;
  int retry_after_ms = 0;

 private:
  absl::Mutex mutex_;
};

class GenerationTest : public ::testing::Test {
 protected:
  GenerationTest()
      : router_(TinyR1().text_fingerprint()),
        routers_(
            {.text_fingerprint = TinyR1().text_fingerprint(), .addresses = {router_.address()}},
            [](const std::string& address) { return rpc::Connect(address, {}).value(); },
            [this] {
              absl::MutexLock lock(&mutex_);
              ++states_;
            }),
        generator_(TinyR1(), routers_, nullptr) {
    absl::MutexLock lock(&mutex_);
    const auto ready = [this] { return routers_.state().ready; };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&ready), kPatience));
  }

  // The ids of the only choice, ended by the end-of-sequence token.
  void Answer(const std::vector<int32_t>& ids) {
    router_.SetScript([ids](const Submit&) { return TokensOf(ids + std::vector<int32_t>{1}); });
  }
  void Answer(std::vector<Token> tokens) {
    router_.SetScript([tokens](const Submit&) { return tokens; });
  }

  std::shared_ptr<Sink> Run(const std::string& request) {
    auto sink = std::make_shared<Sink>();
    const auto started = generator_.Start(Request(request), {.request_id = "r-1"}, sink);
    EXPECT_TRUE(started.ok()) << started.status();
    EXPECT_TRUE(sink->WaitForEnd());
    return sink;
  }
  static v1::GenerateRequest Request(const std::string& text) {
    v1::GenerateRequest request;
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &request)) << text;
    return request;
  }

  // A request is closed just after its sink has heard of the end.
  bool NoneStaysOpen() {
    const absl::Time end = absl::Now() + kPatience;
    while (generator_.open() > 0 && absl::Now() < end) std::this_thread::yield();
    return generator_.open() == 0;
  }

  absl::Mutex mutex_;
  int states_ = 0;
  FakeRouter router_;
  RouterClient routers_;
  Generator generator_;
};

constexpr char kChat[] = R"(chat { messages { role: "user" content: "2+2?" } } )";

TEST_F(GenerationTest, StreamsTextAndEndsWithUsage) {
  const auto ids = Ids("The answer is 42.");
  Answer(ids);
  const auto sink = Run(R"(prompt: "hello" return_token_ids: true)");
  EXPECT_TRUE(sink->status.ok());
  EXPECT_EQ(sink->text[0], "The answer is 42.");
  EXPECT_EQ(sink->last[0].finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(sink->last[0].stop_reason(), "");
  EXPECT_EQ(sink->usage.completion_tokens(), static_cast<int>(ids.size()) + 1);
  const Submit submit = router_.WaitForSubmit(0);
  EXPECT_EQ(sink->usage.prompt_tokens(), submit.prompt_size());
  EXPECT_EQ(sink->chunks[0].prompt_token_ids_size(), submit.prompt_size());
  EXPECT_EQ(sink->chunks[1].prompt_token_ids_size(), 0);
  EXPECT_EQ(submit.trace_id(), "r-1");
  for (const auto& chunk : sink->chunks) {
    EXPECT_EQ(chunk.request_id(), "r-1");
    EXPECT_EQ(chunk.model(), "tiny-r1");
  }
  EXPECT_TRUE(NoneStaysOpen());
}

TEST_F(GenerationTest, SplitsReasoningOfChatsOnly) {
  const auto ids = Ids("let me add") + std::vector<int32_t>{IdOf("</think>")} + Ids("It is 4.");
  Answer(ids);
  const auto chat = Run(kChat);
  EXPECT_EQ(chat->reasoning[0], "let me add");
  EXPECT_EQ(chat->text[0], "It is 4.");
  EXPECT_EQ(chat->usage.reasoning_tokens(), static_cast<int>(Ids("let me add").size()) + 1);
  const auto plain = Run(R"(prompt: "x")");
  EXPECT_EQ(plain->text[0], "let me add</think>It is 4.");
  EXPECT_EQ(plain->usage.reasoning_tokens(), 0);
}

TEST_F(GenerationTest, NeverEmitsAPartOfACharacter) {
  const std::string text = "小明😀有苹果";
  Answer(Ids(text));
  const auto sink = Run(R"(prompt: "x")");
  EXPECT_EQ(sink->text[0], text);
  for (const auto& chunk : sink->chunks) {
    EXPECT_EQ(chunk.choices(0).text().find("\xEF\xBF\xBD"), std::string::npos);
  }
}

TEST_F(GenerationTest, StopStringsEndTheRequestAtTheRouterToo) {
  // Open at the router: no finish follows.
  Answer(TokensOf(Ids("one two three four"), Token::NONE));
  const auto sink = Run(R"(prompt: "x" stop: "zzz" stop: "o thr")");
  EXPECT_EQ(sink->text[0], "one tw");
  EXPECT_EQ(sink->last[0].finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(sink->last[0].stop_reason(), "o thr");
  EXPECT_TRUE(router_.WaitForCancels(1));
  const auto with = Run(R"(prompt: "x" stop: "o thr" include_stop_str_in_output: true)");
  EXPECT_EQ(with->text[0], "one two thr");
}

TEST_F(GenerationTest, AStopStringEndsItsChoiceAtTheRouterWhileTheOthersGoOn) {
  // Both stay open at the router.
  std::vector<Token> tokens = TokensOf(Ids("one two three four"), Token::NONE, 1);
  for (const Token& token : TokensOf(Ids("five six seven"), Token::NONE, 0)) {
    tokens.push_back(token);
  }
  Answer(tokens);
  auto sink = std::make_shared<Sink>();
  const auto generation = generator_.Start(Request(R"(prompt: "x" n: 2 stop: "o thr")"), {}, sink);
  ASSERT_TRUE(generation.ok());
  const CancelRequest one = router_.WaitForCancel(0);
  EXPECT_EQ(one.request(), router_.WaitForSubmit(0).request());
  ASSERT_TRUE(one.has_choice());
  EXPECT_EQ(one.choice(), 1);
  EXPECT_TRUE(sink->WaitForText(0, "five six seven"));
  (*generation)->Cancel();
  EXPECT_FALSE(router_.WaitForCancel(1).has_choice());
  EXPECT_EQ(sink->text[1], "one tw");
  EXPECT_EQ(sink->last[1].stop_reason(), "o thr");
  EXPECT_FALSE(sink->ended);
}

TEST_F(GenerationTest, StopStringsInReasoningEndTheRequest) {
  Answer(TokensOf(Ids("think hard now"), Token::NONE));
  const auto sink = Run(std::string(kChat) + R"(stop: "hard")");
  EXPECT_EQ(sink->reasoning[0], "think ");
  EXPECT_EQ(sink->text[0], "");
  EXPECT_EQ(sink->last[0].stop_reason(), "hard");
}

TEST_F(GenerationTest, TextHeldForAStopStringIsGivenAtTheEnd) {
  Answer(Ids("one two"));
  EXPECT_EQ(Run(R"(prompt: "x" stop: "two three")")->text[0], "one two");
}

TEST_F(GenerationTest, StopStringsCountFromMinTokensOn) {
  Answer(Ids("a b a b a b"));
  EXPECT_EQ(Run(R"(prompt: "x" stop: "b" min_tokens: 1000 max_tokens: 1000)")->text[0],
            "a b a b a b");
}

TEST_F(GenerationTest, NamesTheStopTokenAndLeavesItOut) {
  const auto ids = Ids("yes!");
  Answer(TokensOf(ids, Token::STOP));
  const std::string stop = "stop_token_ids: " + std::to_string(ids.back());
  const auto sink = Run("prompt: 'x' " + stop);
  EXPECT_EQ(sink->text[0], "yes");
  EXPECT_EQ(sink->last[0].stop_reason(), std::to_string(ids.back()));
  EXPECT_EQ(Run("prompt: 'x' include_stop_str_in_output: true " + stop)->text[0], "yes!");
}

TEST_F(GenerationTest, GivesLogprobsWithTheTokensBytes) {
  auto tokens = TokensOf(Ids("hi"), Token::LENGTH);
  for (Token& token : tokens) {
    token.set_logprob(-0.5f);
    auto* top = token.add_top();
    top->set_id(token.id());
    top->set_logprob(-0.5f);
  }
  Answer(tokens);
  const auto sink = Run(R"(prompt: "x" top_logprobs: 1)");
  std::string bytes;
  for (const auto& chunk : sink->chunks) {
    for (const auto& entry : chunk.choices(0).logprobs()) {
      bytes += entry.token();
      EXPECT_EQ(entry.logprob(), -0.5f);
      ASSERT_EQ(entry.top_size(), 1);
      EXPECT_EQ(entry.top(0).token(), entry.token());
    }
  }
  EXPECT_EQ(bytes, "hi");
  EXPECT_EQ(sink->last[0].finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(GenerationTest, EchoGivesThePromptAndItsLogprobsToEveryChoice) {
  // Choice 1 is a token ahead of choice 0, which brings the prompt's log-probabilities.
  std::vector<Token> tokens = TokensOf(Ids("b"), Token::STOP, 1);
  std::vector<Token> zero = TokensOf(Ids("a"), Token::STOP, 0);
  auto* known = zero[0].add_prompt_logprobs();
  known->set_position(1);
  known->set_logprob(-2);
  tokens.insert(tokens.end(), zero.begin(), zero.end());
  Answer(tokens);
  const auto sink = Run(R"(prompt_ids { ids: [5, 6] } echo: true n: 2 top_logprobs: 0
                           include_stop_str_in_output: true)");
  const std::string prompt = TinyR1().tokenizer().Decode(std::vector<int32_t>{5, 6}, true);
  EXPECT_EQ(sink->text[0], prompt + "a");
  EXPECT_EQ(sink->text[1], prompt + "b");
  for (const auto& chunk : sink->chunks) {
    ASSERT_EQ(chunk.choices(0).logprobs_size(), 3);
    EXPECT_TRUE(chunk.choices(0).logprobs(0).none());
    EXPECT_EQ(chunk.choices(0).logprobs(1).logprob(), -2);
  }
}

TEST_F(GenerationTest, EchoWithoutTokensScoresAPrompt) {
  Answer(TokensOf(Ids("a"), Token::LENGTH));
  const auto sink = Run(R"(prompt: "score me" echo: true max_tokens: 0)");
  EXPECT_EQ(sink->text[0], "score me");
  EXPECT_EQ(sink->usage.completion_tokens(), 0);
  EXPECT_EQ(sink->last[0].finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(router_.WaitForSubmit(0).max_tokens(), 1);
}

TEST_F(GenerationTest, GivesRoutedExpertsByPosition) {
  auto tokens = TokensOf(Ids("a"), Token::STOP);
  tokens[0].set_routing_first_position(0);
  for (int i = 0; i < 2 * 4; ++i) {  // two positions, two layers, two experts
    tokens[0].add_routing_experts(i);
    tokens[0].add_routing_weights(0.125f * static_cast<float>(i));
  }
  Answer(tokens);
  const auto sink = Run("prompt_ids { ids: [5, 6] } return_routed_experts: true");
  EXPECT_THAT(sink->chunks[0].moe_layers(), ElementsAre(1, 2));
  const auto& routed = sink->chunks[0].choices(0).routed_experts();
  ASSERT_EQ(routed.size(), 2);
  EXPECT_EQ(routed[1].position(), 1);
  EXPECT_THAT(routed[1].experts(), ElementsAre(4, 5, 6, 7));
  EXPECT_EQ(routed[1].weights(0), 0.5f);
}

TEST_F(GenerationTest, TakesRoutingAndPromptLogprobsAheadOfTheFirstToken) {
  std::vector<Token> tokens;
  for (int position = 0; position < 2; ++position) {
    Token early;
    early.set_index(-1);
    early.set_routing_first_position(position);
    for (int i = 0; i < 4; ++i) {  // two layers, two experts
      early.add_routing_experts(4 * position + i);
      early.add_routing_weights(0.5f);
    }
    if (position == 1) early.add_prompt_logprobs()->set_position(1);
    if (position == 1) early.mutable_prompt_logprobs(0)->set_logprob(-2);
    tokens.push_back(early);
  }
  auto text = TokensOf(Ids("a"), Token::STOP);
  text[0].add_prompt_logprobs()->set_position(2);
  text[0].mutable_prompt_logprobs(0)->set_logprob(-3);
  tokens.insert(tokens.end(), text.begin(), text.end());
  Answer(tokens);
  const auto sink = Run(R"(prompt_ids { ids: [5, 6, 7] } return_routed_experts: true
                           echo: true top_logprobs: 0 include_stop_str_in_output: true)");
  std::vector<int> experts;
  for (const auto& chunk : sink->chunks) {
    for (const auto& routed : chunk.choices(0).routed_experts()) {
      EXPECT_EQ(routed.position() * 4, static_cast<int>(experts.size()));
      experts.insert(experts.end(), routed.experts().begin(), routed.experts().end());
    }
  }
  EXPECT_THAT(experts, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  // The first chunk tells of the prompt, with all its log-probabilities.
  EXPECT_THAT(sink->chunks[0].moe_layers(), ElementsAre(1, 2));
  ASSERT_EQ(sink->chunks[0].choices(0).logprobs_size(), 3);
  EXPECT_EQ(sink->chunks[0].choices(0).logprobs(1).logprob(), -2);
  EXPECT_EQ(sink->chunks[0].choices(0).logprobs(2).logprob(), -3);
}

TEST_F(GenerationTest, AnErrorBeforeAnyTokenRefusesTheRequest) {
  Token token;
  token.set_index(-1);
  token.set_finish(Token::ERROR);
  token.set_code(8);
  token.set_message("the queue is full");
  token.set_retry_after_ms(2500);
  Answer(std::vector<Token>{token});
  const auto sink = Run(R"(prompt: "x")");
  EXPECT_EQ(sink->status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(sink->status.message(), "the queue is full");
  EXPECT_EQ(sink->retry_after_ms, 2500);
  EXPECT_TRUE(sink->chunks.empty());
}

TEST_F(GenerationTest, OneChoicesErrorLeavesTheOthersAlone) {
  std::vector<Token> tokens = TokensOf(Ids("good"), Token::STOP, 1);
  Token bad;
  bad.set_choice(0);
  bad.set_index(-1);
  bad.set_finish(Token::ERROR);
  bad.set_code(13);
  bad.set_message("a row was lost");
  tokens.insert(tokens.begin() + 1, bad);
  Answer(tokens);
  const auto sink = Run(R"(prompt: "x" n: 2 include_stop_str_in_output: true)");
  EXPECT_TRUE(sink->status.ok());
  EXPECT_EQ(sink->text[1], "good");
  EXPECT_EQ(sink->last[0].finish_reason(), v1::FINISH_REASON_ERROR);
  EXPECT_EQ(sink->last[0].error(), "a row was lost");
}

TEST_F(GenerationTest, ABrokenStreamEndsItAsUnavailable) {
  Answer(TokensOf(Ids("one"), Token::NONE));
  auto sink = std::make_shared<Sink>();
  ASSERT_TRUE(generator_.Start(Request(R"(prompt: "x")"), {}, sink).ok());
  ASSERT_TRUE(sink->WaitForChunks(1));
  router_.BreakStreams();
  ASSERT_TRUE(sink->WaitForEnd());
  EXPECT_EQ(sink->status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(GenerationTest, CancelReachesTheRouter) {
  Answer(TokensOf(Ids("one"), Token::NONE));
  auto sink = std::make_shared<Sink>();
  const auto generation = generator_.Start(Request(R"(prompt: "x")"), {}, sink);
  ASSERT_TRUE(generation.ok());
  (*generation)->Cancel();
  (*generation)->Cancel();
  EXPECT_TRUE(router_.WaitForCancels(1));
  EXPECT_FALSE(sink->ended);
  EXPECT_EQ(sink.use_count(), 1);  // let go
  EXPECT_TRUE(NoneStaysOpen());
}

TEST_F(GenerationTest, ASinkThatTakesNoMoreCancels) {
  Answer(TokensOf(Ids("one two three"), Token::NONE));
  auto sink = std::make_shared<Sink>();
  sink->refuse_at = 2;
  ASSERT_TRUE(generator_.Start(Request(R"(prompt: "x")"), {}, sink).ok());
  EXPECT_TRUE(router_.WaitForCancels(1));
  EXPECT_TRUE(sink->WaitForChunks(2));
  EXPECT_EQ(sink->chunks.size(), 2u);
}

TEST_F(GenerationTest, DeadlinesTravelAndPastOnesAreRefused) {
  Answer(Ids("x"));
  auto sink = std::make_shared<Sink>();
  const CallContext late = {.deadline = absl::Now() - absl::Seconds(1)};
  EXPECT_EQ(generator_.Start(Request(R"(prompt: "x")"), late, sink).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  const CallContext soon = {.deadline = absl::Now() + absl::Seconds(100), .fair_key = "k"};
  ASSERT_TRUE(generator_.Start(Request(R"(prompt: "x")"), soon, sink).ok());
  const Submit submit = router_.WaitForSubmit(0);
  EXPECT_GT(submit.deadline_left_us(), 50'000'000);
  EXPECT_LE(submit.deadline_left_us(), 100'000'000);
  EXPECT_EQ(submit.fair_key(), "k");
  EXPECT_TRUE(sink->WaitForEnd());
}

TEST_F(GenerationTest, DrainRefusesNewAndEndsOldRequests) {
  Answer(TokensOf(Ids("one"), Token::NONE));
  auto sink = std::make_shared<Sink>();
  ASSERT_TRUE(generator_.Start(Request(R"(prompt: "x")"), {}, sink).ok());
  EXPECT_EQ(generator_.FinishWithin(absl::Milliseconds(20)), 1);
  ASSERT_TRUE(sink->WaitForEnd());
  EXPECT_EQ(sink->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(router_.WaitForCancels(1));
  EXPECT_EQ(generator_.FinishWithin(kPatience), 0);
  EXPECT_EQ(generator_.Start(Request(R"(prompt: "x")"), {}, sink).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(GenerationTest, TokenizesAndBack) {
  v1::TokenizeRequest request;
  request.set_prompt("hello");
  const auto ids = generator_.Tokenize(request);
  EXPECT_EQ(ids->ids(0), 0);
  EXPECT_EQ(ids->max_model_len(), 4096);
  v1::DetokenizeRequest back;
  for (int i = 1; i < ids->ids_size(); ++i) back.add_ids(ids->ids(i));
  EXPECT_EQ(generator_.Detokenize(back)->text(), "hello");
  back.add_ids(2560);
  EXPECT_EQ(FieldOf(generator_.Detokenize(back).status()), "tokens");
  EXPECT_THAT(generator_.ListModels().models(0).id(), "tiny-r1");
}

}  // namespace
}  // namespace switchyard::gateway
