// A stream whose router is lost goes on at another, and its client sees the same text: over a real
// RouterClient and two routers whose tokens are scripted.
#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <thread>

#include "gateway/streams/generator.h"
#include "services/rpc/channel.h"
#include "tests/support/fake_router.h"
#include "tests/support/tiny_r1.h"

namespace switchyard::gateway {
namespace {

using ::switchyard::testing::FakeRouter;
using ::switchyard::testing::Ids;
using ::switchyard::testing::Submit;
using ::switchyard::testing::TinyR1;
using ::switchyard::testing::Token;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(20);

class Sink : public ChunkSink {
 public:
  bool OnChunk(const v1::GenerateResponse& chunk) override {
    absl::MutexLock lock(&mutex_);
    for (const v1::Choice& choice : chunk.choices()) {
      text_[choice.index()] += choice.text();
      tokens_[choice.index()] += choice.token_ids_size();
      degraded_[choice.index()] += choice.degraded() == v1::DEGRADED_NEXT_BEST;
      EXPECT_NE(choice.degraded(), v1::DEGRADED_RENORMALISE);
      if (choice.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) ++finishes_[choice.index()];
    }
    if (chunk.has_usage()) usage_ = chunk.usage();
    return true;
  }
  void OnEnd(const absl::Status& end, int) override {
    absl::MutexLock lock(&mutex_);
    ended_ = true;
    status_ = end;
  }
  absl::Status End() {
    absl::MutexLock lock(&mutex_);
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&ended_), kPatience));
    return status_;
  }
  void AwaitTokens(int choice, int tokens) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&] { return tokens_[choice] >= tokens || ended_; };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&there), kPatience));
  }
  std::string text(int choice) {
    absl::MutexLock lock(&mutex_);
    return text_[choice];
  }
  int tokens(int choice) {
    absl::MutexLock lock(&mutex_);
    return tokens_[choice];
  }
  int finishes(int choice) {
    absl::MutexLock lock(&mutex_);
    return finishes_[choice];
  }
  int degraded(int choice) {  // chunks
    absl::MutexLock lock(&mutex_);
    return degraded_[choice];
  }
  v1::Usage usage() {
    absl::MutexLock lock(&mutex_);
    return usage_;
  }

 private:
  absl::Mutex mutex_;
  std::map<int, std::string> text_;
  std::map<int, int> tokens_, finishes_, degraded_;
  v1::Usage usage_;
  bool ended_ = false;
  absl::Status status_;
};

struct Counts : GenerationObserver {
  void OnStart(int) override {}
  void OnFirstToken(absl::Duration) override {}
  void OnNextToken(absl::Duration) override {}
  void OnEnd(absl::StatusCode, int) override {}
  void OnResumed(const char* reason) override {
    absl::MutexLock lock(&mutex);
    ++resumed[reason];
  }
  void OnStall(absl::Duration) override { ++stalls; }
  void OnStaleToken() override { ++stale; }
  void OnDegraded(v1::Degraded how) override {
    degraded += how == v1::DEGRADED_NEXT_BEST ? 1 : 100;
  }
  std::map<std::string, int> Resumed() {
    absl::MutexLock lock(&mutex);
    return resumed;
  }
  absl::Mutex mutex;
  std::map<std::string, int> resumed;
  std::atomic<int> stalls{0}, stale{0}, degraded{0};
};

// A model: what each choice says in the end, and routers that go on where they are told to.
class ResumeTest : public ::testing::Test {
 protected:
  void Start(GenerationOptions options = {.router_wait = kPatience}) {
    for (FakeRouter* router : {&a_, &b_}) {
      router->SetScript([this, router](const Submit& submit) { return Play(router, submit); });
    }
    routers_ = std::make_unique<RouterClient>(
        RouterClientOptions{.text_fingerprint = TinyR1().text_fingerprint(),
                            .addresses = {a_.address(), b_.address()},
                            .backoff_min = absl::Milliseconds(5),
                            .backoff_max = absl::Milliseconds(20),
                            .router_wait = kPatience},
        [](const std::string& address) { return rpc::Connect(address, {}).value(); },
        [this] {
          absl::MutexLock lock(&mutex_);
          ++states_;
        });
    generator_ = std::make_unique<Generator>(TinyR1(), *routers_, &counts_, options);
    absl::MutexLock lock(&mutex_);
    const auto ready = [this] {
      const RoutersState state = routers_->state();
      return state.routers[0].ready && state.routers[1].ready;
    };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&ready), kPatience));
  }

  std::shared_ptr<Sink> Begin(const std::string& request) {
    v1::GenerateRequest r;
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(request, &r)) << request;
    r.set_return_token_ids(true);
    auto sink = std::make_shared<Sink>();
    const auto started = generator_->Start(r, {.request_id = "r-1"}, sink);
    EXPECT_TRUE(started.ok()) << started.status();
    return sink;
  }

  // Tokens of each choice from where it stands, up to cuts_[attempt] in all; turn by turn.
  std::vector<Token> Play(FakeRouter* router, const Submit& submit) {
    absl::MutexLock lock(&script_mutex_);
    seen_.push_back(submit);
    at_ = router;
    if (submit.attempt() < refusals_.size() && refusals_[submit.attempt()].code() != 0) {
      std::vector<Token> refused;
      for (int c = 0; c < submit.n(); ++c) {
        refused.push_back(refusals_[submit.attempt()]);
        refused.back().set_choice(c);
      }
      return refused;
    }
    std::vector<Token> out;
    const size_t cut = submit.attempt() < cuts_.size() ? cuts_[submit.attempt()] : 1000;
    for (size_t i = 0; i < 200; ++i) {
      for (int c = 0; c < submit.n(); ++c) {
        const bool told = c < submit.choices_size();
        if (told && submit.choices(c).ended()) continue;
        const size_t from =
            told ? static_cast<size_t>(submit.choices(c).tokens_size()) - repeats_ : 0;
        if (i < from || i >= cut || i >= says_[c].size()) continue;
        Token& token = out.emplace_back();
        token.set_choice(c);
        token.set_index(static_cast<int>(i));
        token.set_id(says_[c][i]);
        const bool marked = submit.attempt() == 0 && c == degraded_choice_ && i > 0;
        token.set_degraded(marked ? Token::NEXT_BEST : Token::NO);
        if (i + 1 == says_[c].size()) token.set_finish(Token::LENGTH);
      }
    }
    return out;
  }
  FakeRouter& Holder() {
    absl::MutexLock lock(&script_mutex_);
    return *at_;
  }
  std::vector<Submit> seen() {
    absl::MutexLock lock(&script_mutex_);
    return seen_;
  }

  absl::Mutex mutex_, script_mutex_;
  int states_ = 0;
  std::vector<std::vector<int32_t>> says_;
  std::vector<size_t> cuts_;
  std::vector<Token> refusals_;  // by attempt; code 0: none
  int degraded_choice_ = -1;     // from its second token on, at the first router
  size_t repeats_ = 0;           // tokens that a router sends again
  std::vector<Submit> seen_;
  FakeRouter* at_ = nullptr;
  Counts counts_;
  FakeRouter a_{TinyR1().text_fingerprint()}, b_{TinyR1().text_fingerprint()};
  std::unique_ptr<RouterClient> routers_;
  std::unique_ptr<Generator> generator_;
};

TEST_F(ResumeTest, TheTextGoesOnWhereverTheRouterWasLost) {
  says_ = {Ids("The answer is 42, naïvely 🙂 said.")};
  const auto length = static_cast<int>(says_[0].size());
  const std::string text = TinyR1().tokenizer().Decode(says_[0], true);
  Start();
  for (int cut = 1; cut < length; ++cut) {
    {
      absl::MutexLock lock(&script_mutex_);
      cuts_ = {static_cast<size_t>(cut)};
    }
    auto sink = Begin(R"(prompt: "x" sampling { temperature: 1 })");
    sink->AwaitTokens(0, cut);
    FakeRouter& lost = Holder();
    lost.BreakStreams();
    EXPECT_TRUE(sink->End().ok()) << cut;
    EXPECT_EQ(sink->text(0), text) << cut;
    EXPECT_EQ(sink->tokens(0), length);
    EXPECT_EQ(sink->usage().completion_tokens(), length);
    const Submit first = seen()[seen().size() - 2], second = seen().back();
    EXPECT_EQ(second.attempt(), 1u);
    EXPECT_EQ(second.sampling().seed(), first.sampling().seed());
    EXPECT_NE(second.sampling().seed(), 0u);
    EXPECT_EQ(second.max_tokens(), first.max_tokens());
    EXPECT_EQ(second.prompt_size(), first.prompt_size());
    EXPECT_THAT(second.choices(0).tokens(),
                ::testing::ElementsAreArray(says_[0].begin(), says_[0].begin() + cut));
    absl::MutexLock lock(&mutex_);
    const auto back = [this] {
      const RoutersState state = routers_->state();
      return state.routers[0].ready && state.routers[1].ready;
    };
    ASSERT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&back), kPatience));
  }
  EXPECT_THAT(counts_.Resumed(), ElementsAre(::testing::Pair("broken", length - 1)));
  EXPECT_EQ(counts_.stalls, length - 1);
  EXPECT_EQ(counts_.stale, 0);
}

TEST_F(ResumeTest, AStopStringMayBeHalfSeen) {
  says_ = {Ids("one two three four five")};
  const std::vector<int32_t> until = Ids("one two th");
  cuts_ = {until.size()};
  Start();
  auto sink = Begin(R"(prompt: "x" stop: "two three")");
  sink->AwaitTokens(0, static_cast<int>(until.size()));
  EXPECT_EQ(sink->text(0), "one ");  // the rest may become the stop string
  Holder().BreakStreams();
  EXPECT_TRUE(sink->End().ok());
  EXPECT_EQ(sink->text(0), "one ");
  EXPECT_EQ(sink->finishes(0), 1);
}

TEST_F(ResumeTest, ChoicesThatHaveEndedStayEnded) {
  says_ = {Ids("alpha beta gamma delta epsilon"), Ids("no"), Ids("alpha stop beta gamma delta")};
  const auto cut = static_cast<int>(Ids("alpha stop beta").size());
  cuts_ = {static_cast<size_t>(cut)};
  Start();
  auto sink = Begin(R"(prompt: "x" n: 3 stop: "stop")");
  sink->AwaitTokens(0, cut);
  Holder().BreakStreams();
  EXPECT_TRUE(sink->End().ok());
  EXPECT_EQ(sink->text(0), "alpha beta gamma delta epsilon");
  EXPECT_EQ(sink->text(1), "no");
  EXPECT_EQ(sink->text(2), "alpha ");
  for (int c = 0; c < 3; ++c) EXPECT_EQ(sink->finishes(c), 1) << c;
  const Submit second = seen().back();
  ASSERT_EQ(second.choices_size(), 3);
  EXPECT_FALSE(second.choices(0).ended());
  EXPECT_TRUE(second.choices(1).ended());
  EXPECT_TRUE(second.choices(2).ended());
}

TEST_F(ResumeTest, ADegradedChoiceStaysSoAtAnotherRouter) {
  says_ = {Ids("one two three four five"), Ids("one two three four five")};
  cuts_ = {3};
  degraded_choice_ = 1;
  Start();
  auto sink = Begin(R"(prompt: "x" n: 2)");
  sink->AwaitTokens(1, 3);
  Holder().BreakStreams();
  EXPECT_TRUE(sink->End().ok());
  EXPECT_EQ(sink->degraded(0), 0);
  EXPECT_EQ(sink->degraded(1), sink->tokens(1) - 1);
  EXPECT_EQ(counts_.degraded, 1) << "once a request";
}

TEST_F(ResumeTest, TokensThatComeTwiceAreTakenOnce) {
  says_ = {Ids("one two three four five")};
  cuts_ = {4};
  repeats_ = 3;
  Start();
  auto sink = Begin(R"(prompt: "x")");
  sink->AwaitTokens(0, 4);
  Holder().BreakStreams();
  EXPECT_TRUE(sink->End().ok());
  EXPECT_EQ(sink->text(0), "one two three four five");
  EXPECT_EQ(counts_.stale, 3);
}

TEST_F(ResumeTest, ARouterThatDrainsRefusesForElsewhereAndAFullOneIsAskedAgain) {
  says_ = {Ids("one two three four five")};
  Token draining;
  draining.set_index(-1);
  draining.set_finish(Token::ERROR);
  draining.set_code(14);
  draining.set_elsewhere(true);
  Token full = draining;
  full.set_code(8);
  full.set_elsewhere(false);
  full.set_retry_after_ms(1);
  refusals_ = {draining, full, full, full, full, full, full};
  Start();
  auto sink = Begin(R"(prompt: "x" n: 1)");
  EXPECT_TRUE(sink->End().ok());
  EXPECT_EQ(sink->text(0), "one two three four five");
  EXPECT_THAT(counts_.Resumed(), ElementsAre(::testing::Pair("refused", 7)));
}

TEST_F(ResumeTest, LossesWithoutATokenBetweenEndTheStream) {
  says_ = {Ids("one two three four five")};
  cuts_ = {3, 3, 4, 4, 4, 4};  // the third attempt brings one
  Start({.resume_attempts = 2});
  auto sink = Begin(R"(prompt: "x")");
  sink->AwaitTokens(0, 3);
  for (size_t attempt = 0; attempt < 5; ++attempt) {
    const absl::Time end = absl::Now() + kPatience;
    while (seen().size() <= attempt && absl::Now() < end) std::this_thread::yield();
    if (attempt == 2) sink->AwaitTokens(0, 4);
    Holder().BreakStreams();
  }
  EXPECT_EQ(sink->End().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(seen().size(), 5u);
}

TEST_F(ResumeTest, WithoutAttemptsAStreamEndsWithItsRouter) {
  says_ = {Ids("one two three four five")};
  cuts_ = {3};
  Start({.resume_attempts = 0});
  auto sink = Begin(R"(prompt: "x")");
  sink->AwaitTokens(0, 3);
  Holder().BreakStreams();
  EXPECT_EQ(sink->End().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(seen().size(), 1u);
}

// ---- the fence alone

Token At(int choice, int index, uint32_t attempt = 0) {
  Token token;
  token.set_choice(choice);
  token.set_index(index);
  token.set_id(100 + index);
  token.set_attempt(attempt);
  return token;
}

TEST(ReplayTest, TheNewestAttemptAndEachIndexOnce) {
  Replay replay(2, 4);
  using enum Replay::Verdict;
  EXPECT_EQ(replay.Judge(At(0, 0)), kNews);
  EXPECT_EQ(replay.Judge(At(0, 1)), kGap);
  EXPECT_EQ(replay.Judge(At(0, 0, 1)), kStale);  // of an attempt that was not made
  replay.Take(At(0, 0));
  EXPECT_EQ(replay.Judge(At(0, 0)), kStale);
  EXPECT_EQ(replay.Judge(At(0, 1)), kNews);
  EXPECT_EQ(replay.Judge(At(1, 0)), kNews);
  replay.BeginAttempt();
  EXPECT_EQ(replay.Judge(At(0, 1)), kStale);  // a router that was given up goes on
  EXPECT_EQ(replay.Judge(At(0, 1, 1)), kNews);
  replay.End(0);
  EXPECT_EQ(replay.Judge(At(0, 1, 1)), kOver);
  EXPECT_FALSE(replay.all_ended());
  Token last = At(1, 0, 1);
  last.set_finish(Token::STOP);
  replay.Take(last);
  EXPECT_TRUE(replay.all_ended());
}

TEST(ReplayTest, TellsTheNextRouterWhatHasCome) {
  Replay replay(2, 4);
  Token token = At(0, -1);
  token.set_routing_first_position(2);
  for (int i = 0; i < 12; ++i) token.add_routing_experts(i);
  token.add_prompt_logprobs()->set_position(1);
  token.add_prompt_logprobs()->set_position(2);
  replay.Take(token);
  replay.Take(At(1, 0));
  replay.Take(At(1, 1));
  Submit submit;
  replay.Fill(&submit);
  EXPECT_EQ(submit.choices_size(), 0);  // the first attempt has nothing to go on from
  replay.BeginAttempt();
  EXPECT_EQ(replay.fruitless(), 1);
  replay.Fill(&submit);
  EXPECT_EQ(submit.attempt(), 1u);
  EXPECT_EQ(submit.prompt_logprobs_until(), 2);
  ASSERT_EQ(submit.choices_size(), 2);
  EXPECT_EQ(submit.choices(0).routing_until(), 5);
  EXPECT_THAT(submit.choices(1).tokens(), ElementsAre(100, 101));
  replay.Take(At(1, 2, 1));
  EXPECT_EQ(replay.fruitless(), 0);
}

}  // namespace
}  // namespace switchyard::gateway
