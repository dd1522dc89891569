#include "gateway/text/reasoning_split.h"

#include "gtest/gtest.h"
#include "tests/unit/services/tokenizer/goldens.h"

namespace switchyard::gateway {
namespace {

class ReasoningSplitTest : public ::testing::Test {
 protected:
  std::vector<int32_t> Ids(const std::string& text) {
    auto ids = tokenizer_.Encode(text, {.add_special_tokens = false});
    EXPECT_TRUE(ids.ok()) << ids.status();
    return *ids;
  }

  bool Inside(const std::string& prompt) {
    return EndsInsideReasoning(tokenizer_, *tokens_, Ids(prompt));
  }

  ReasoningDelta Split(const std::string& text, bool inside) {
    ReasoningSplitter splitter(tokenizer_, tokens_, inside, true);
    ReasoningDelta all;
    const auto add = [&](const ReasoningDelta& delta) {
      all.reasoning += delta.reasoning;
      all.content += delta.content;
    };
    for (int32_t id : Ids(text)) add(splitter.Push(id));
    add(splitter.Flush());
    return all;
  }

  const Tokenizer& tokenizer_ = test::Published("tiny-r1");
  const std::optional<ReasoningTokens> tokens_ = FindReasoningTokens(tokenizer_);
};

TEST_F(ReasoningSplitTest, KnowsWhereThePromptEnds) {
  ASSERT_TRUE(tokens_.has_value());
  EXPECT_TRUE(Inside("<｜User｜>Hi<｜Assistant｜><think>\n"));
  EXPECT_TRUE(Inside("<｜Assistant｜><think>\nwell, 1 + 1"));
  EXPECT_FALSE(Inside("<｜User｜>Hi<｜Assistant｜>"));
  EXPECT_FALSE(Inside("<｜Assistant｜><think>\nso</think>"));
  EXPECT_FALSE(Inside("<｜User｜>what is <think><｜Assistant｜>"));
  EXPECT_FALSE(Inside(""));
}

TEST_F(ReasoningSplitTest, SplitsByTokenAndDropsTheLayout) {
  const auto inside = Split("2 + 2\n\nis 4\n</think>\n\nIt is 4.\n", true);
  EXPECT_EQ(inside.reasoning, "2 + 2\n\nis 4");
  EXPECT_EQ(inside.content, "It is 4.\n");
  const auto outside = Split("<think>\nhm</think>yes<｜end▁of▁sentence｜>", false);
  EXPECT_EQ(outside.reasoning, "hm");
  EXPECT_EQ(outside.content, "yes");
}

TEST_F(ReasoningSplitTest, AMarkerThatChangesNothingIsText) {
  const auto split = Split("a</think>b", false);
  EXPECT_EQ(split.reasoning, "");
  EXPECT_EQ(split.content, "a</think>b");
}

TEST_F(ReasoningSplitTest, ReasoningThatNeverEndsIsNotContent) {
  const auto split = Split("on and on\n", true);
  EXPECT_EQ(split.reasoning, "on and on");
  EXPECT_EQ(split.content, "");
}

TEST_F(ReasoningSplitTest, WithoutMarkersEverythingIsContent) {
  ReasoningSplitter splitter(tokenizer_, std::nullopt, true, true);
  std::string content;
  for (int32_t id : Ids("\n<think>x")) content += splitter.Push(id).content;
  EXPECT_EQ(content + splitter.Flush().content, "\n<think>x");
}

}  // namespace
}  // namespace switchyard::gateway
