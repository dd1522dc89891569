#include "services/base/logging.h"

#include <gtest/gtest.h>

namespace switchyard::log {
namespace {

std::string Written(std::string_view message) {
  ::testing::internal::CaptureStderr();
  Write(Level::kError, message);
  return ::testing::internal::GetCapturedStderr();
}

TEST(LoggingTest, AnEventIsOneLine) {
  const std::string line = Written("not ready: one\ntwo\r\x1b[2K");
  EXPECT_NE(line.find("E not ready: one; two??[2K\n"), std::string::npos) << line;
  EXPECT_EQ(line.find('\n'), line.size() - 1);
}

TEST(LoggingTest, TextBeyondAsciiIsLeftAlone) {
  EXPECT_NE(Written("experts 17, 40–63").find("experts 17, 40–63\n"), std::string::npos);
}

}  // namespace
}  // namespace switchyard::log
