#include "tools/cli/sse_parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace switchyard::cli {
namespace {

using testing::ElementsAre;

std::vector<std::string> Events(std::string_view text, size_t piece) {
  SseParser parser;
  std::vector<std::string> events;
  for (size_t at = 0; at < text.size(); at += piece) {
    parser.Feed(text.substr(at, piece), [&](std::string_view data) {
      events.emplace_back(data);
      return true;
    });
  }
  return events;
}

TEST(SseParserTest, FindsEventsHoweverTheBytesAreCut) {
  constexpr std::string_view kText =
      "data: one\n\n: a comment\nevent: x\ndata:two\r\n\r\ndata: three\ndata: four\n\ndata: "
      "unfinished";
  for (size_t piece = 1; piece <= kText.size(); ++piece) {
    EXPECT_THAT(Events(kText, piece), ElementsAre("one", "two", "three\nfour")) << piece;
  }
}

TEST(SseParserTest, EmptyDataIsAnEventAndNoDataIsNone) {
  EXPECT_THAT(Events("data:\n\n\n\nevent: x\n\n", 3), ElementsAre(""));
}

TEST(SseParserTest, StopsWhenTheCallbackSaysSo) {
  SseParser parser;
  int seen = 0;
  EXPECT_FALSE(parser.Feed("data: a\n\ndata: b\n\n", [&](std::string_view) {
    ++seen;
    return false;
  }));
  EXPECT_EQ(seen, 1);
}

}  // namespace
}  // namespace switchyard::cli
