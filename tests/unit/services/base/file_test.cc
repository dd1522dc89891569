#include "services/base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>

#include "services/base/text.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

class WriteFileTest : public testing::Test {
 protected:
  WriteFileTest() {
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
  }
  ~WriteFileTest() override { std::filesystem::remove_all(directory_); }

  size_t Files() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(directory_), {}));
  }

  const std::string directory_ = testing::TempDir() + "/write-file-" + std::to_string(::getpid());
  const std::string path_ = directory_ + "/file";
};

TEST_F(WriteFileTest, WritesAndReplaces) {
  for (const std::string text : {"first", "", "a longer second"}) {
    ASSERT_TRUE(WriteFile(path_, text).ok());
    EXPECT_EQ(*ReadFile(path_, 100), text);
  }
  EXPECT_EQ(Files(), 1u);
}

TEST_F(WriteFileTest, WhereThereIsNoRoomTheOldTextStays) {
  ASSERT_TRUE(WriteFile(path_, "old").ok());
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto was = signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {.rlim_cur = 1000, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = WriteFile(path_, std::string(5000, 'x'));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, was);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(ToStd(status.message()), HasSubstr(path_ + ": cannot be written: File too large"));
  EXPECT_THAT(ToStd(status.message()), HasSubstr("4000 of 5000 bytes are missing"));
  EXPECT_EQ(*ReadFile(path_, 100), "old");
  EXPECT_EQ(Files(), 1u);
}

TEST_F(WriteFileTest, DevicesAndLinksStayWhatTheyAre) {
  EXPECT_TRUE(WriteFile("/dev/null", "gone").ok());
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  const absl::Status full = WriteFile("/dev/full", "text");
  EXPECT_THAT(ToStd(full.message()), HasSubstr("No space left on device"));
  const std::string link = directory_ + "/link";
  ASSERT_TRUE(WriteFile(path_, "old").ok());
  std::filesystem::create_symlink(path_, link);
  ASSERT_TRUE(WriteFile(link, "new").ok());
  EXPECT_EQ(*ReadFile(path_, 100), "new");
}

}  // namespace
}  // namespace switchyard
