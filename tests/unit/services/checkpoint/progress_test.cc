#include "services/checkpoint/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace switchyard::checkpoint {
namespace {

constexpr uint64_t kMib = 1 << 20;

class ProgressTest : public testing::Test {
 protected:
  ConsoleProgress Make(bool terminal) {
    return ConsoleProgress({.label = "Reading",
                            .terminal = terminal,
                            .seconds = [this] { return now_s_; },
                            .write = [this](std::string_view text) { out_ += text; }});
  }
  double now_s_ = 100;
  std::string out_;
};

TEST_F(ProgressTest, ALineEveryTenPerCentWithoutATerminal) {
  ConsoleProgress progress = Make(false);
  for (uint64_t done = 1; done <= 100; ++done) {
    now_s_ += 1;
    progress(done * kMib, 100 * kMib);
  }
  EXPECT_EQ(std::ranges::count(out_, '\n'), 11) << out_;  // 1 %, 10 %, …, 100 %
  EXPECT_THAT(out_, testing::StartsWith("Reading: 1 MiB of 100 MiB (1 %), 2 min left\n"));
  EXPECT_THAT(out_, testing::HasSubstr("Reading: 50 MiB of 100 MiB (50 %), 50 s left\n"));
  EXPECT_THAT(out_, testing::EndsWith("Reading: 100 MiB of 100 MiB (100 %)\n"));
}

TEST_F(ProgressTest, OneLineOnATerminal) {
  ConsoleProgress progress = Make(true);
  for (uint64_t done = 1; done <= 100; ++done) {
    now_s_ += 10;
    progress(done * 1024 * kMib, 102400 * kMib);
  }
  EXPECT_EQ(std::ranges::count(out_, '\n'), 1);
  EXPECT_THAT(out_, testing::HasSubstr("\rReading: 10.0 GiB of 100.0 GiB (10 %), 15 min left"));
  EXPECT_THAT(out_, testing::EndsWith("(100 %)\033[K\n"));
}

TEST_F(ProgressTest, SilentForWhatIsQuick) {
  ConsoleProgress progress = Make(false);
  for (uint64_t done = 1; done <= 100; ++done) {
    now_s_ += 0.004;
    progress(done, 100);
  }
  now_s_ += 5;
  progress(100, 100);
  EXPECT_EQ(out_, "");
}

}  // namespace
}  // namespace switchyard::checkpoint
