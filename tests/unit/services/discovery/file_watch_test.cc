#include "services/discovery/file_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <vector>

#include "absl/synchronization/notification.h"
#include "services/base/status.h"

namespace switchyard::discovery {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FileWatchTest : public ::testing::Test {
 protected:
  FileWatchTest() {
    std::string name = ::testing::TempDir() + "file_watch_XXXXXX";
    dir_ = ::mkdtemp(name.data());
  }
  ~FileWatchTest() override { fs::remove_all(dir_); }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(dir_ / name) << text;
  }
  // Looks at it only when told to.
  void Watch(const std::string& name = "document", uint64_t max_bytes = 100) {
    watch_ = std::make_unique<FileWatch>(
        FileWatchOptions{dir_ / name, max_bytes, absl::InfiniteDuration()},
        [this](const std::string& text) {
          calls_.push_back(text);
          return text.find("bad") == std::string::npos ? absl::OkStatus()
                                                       : InvalidArgument("it is bad");
        });
  }
  void Look(int times = 2) {
    for (int i = 0; i < times; ++i) watch_->Look();
  }
  std::string Error() { return std::string(watch_->health().status.message()); }

  fs::path dir_;
  std::vector<std::string> calls_;
  std::unique_ptr<FileWatch> watch_;
};

TEST_F(FileWatchTest, EachVersionIsHandedOnOnce) {
  Write("document", "one");
  Watch();
  Look(5);
  EXPECT_THAT(calls_, ElementsAre("one"));
  Write("document", "second");
  Look(5);
  EXPECT_THAT(calls_, ElementsAre("one", "second"));
  EXPECT_EQ(watch_->health().taken, 2u);
  EXPECT_TRUE(watch_->health().status.ok());
}

TEST_F(FileWatchTest, NothingIsHandedOnWhileItIsBeingWritten) {
  Write("document", "a");
  Watch();
  std::string text = "a";
  for (int i = 0; i < 5; ++i) {
    watch_->Look();
    Write("document", text += "b");
  }
  EXPECT_THAT(calls_, ElementsAre());
  Look();
  EXPECT_THAT(calls_, ElementsAre("abbbbb"));
}

TEST_F(FileWatchTest, WhatCannotBeUsedIsAnErrorUntilItChanges) {
  Write("document", "good");
  Watch();
  Look();
  Write("document", "bad one");
  Look(4);
  EXPECT_THAT(calls_, ElementsAre("good", "bad one"));
  EXPECT_EQ(Error(), "it is bad");
  EXPECT_EQ(watch_->health().refused, 1u);
  Write("document", "better");
  Look();
  EXPECT_TRUE(watch_->health().status.ok());
  EXPECT_EQ(watch_->health().taken, 2u);
}

TEST_F(FileWatchTest, ADeletedFileChangesNothingButIsToldWhenItLasts) {
  Watch();
  Look();
  EXPECT_THAT(Error(), HasSubstr("No such file"));
  Write("document", "one");
  Look();
  EXPECT_TRUE(watch_->health().status.ok());
  fs::remove(dir_ / "document");
  Look(1);
  EXPECT_TRUE(watch_->health().status.ok()) << "as between a deletion and its successor";
  Look(1);
  EXPECT_THAT(Error(), HasSubstr("No such file"));
  Write("document", "one");
  Look();
  EXPECT_TRUE(watch_->health().status.ok());
  EXPECT_THAT(calls_, ElementsAre("one")) << "it is what is in force already";
}

// As the kubelet does it: document → ..data/document, ..data → a directory, exchanged by rename.
TEST_F(FileWatchTest, AConfigMapIsFollowedThroughItsExchangedSymlink) {
  for (const std::string version : {"v1", "v2"}) {
    fs::create_directory(dir_ / version);
    Write(version + "/document", version);
  }
  fs::create_directory_symlink("v1", dir_ / "..data");
  fs::create_symlink("..data/document", dir_ / "document");
  Watch();
  Look();
  fs::create_directory_symlink("v2", dir_ / "..data_tmp");
  fs::rename(dir_ / "..data_tmp", dir_ / "..data");
  Look();
  EXPECT_THAT(calls_, ElementsAre("v1", "v2"));
}

TEST_F(FileWatchTest, AFileThatIsTooLongIsNotRead) {
  Write("document", std::string(101, 'x'));
  Watch();
  Look();
  EXPECT_THAT(Error(), HasSubstr("longer than the 100 bytes"));
  Write("document", std::string(100, 'x'));
  Look();
  EXPECT_EQ(calls_.size(), 1u);
}

TEST_F(FileWatchTest, AThreadLooksByItself) {
  Write("document", "one");
  absl::Notification came;
  FileWatch watch({.path = dir_ / "document", .every = absl::Milliseconds(1)},
                  [&](const std::string&) {
                    came.Notify();
                    return absl::OkStatus();
                  });
  EXPECT_TRUE(came.WaitForNotificationWithTimeout(absl::Seconds(20)));
}

}  // namespace
}  // namespace switchyard::discovery
