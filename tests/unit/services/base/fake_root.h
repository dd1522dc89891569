// A folder that stands in for / where /proc and /sys are read; gone with the test.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace switchyard {

class FakeRootTest : public ::testing::Test {
 protected:
  ~FakeRootTest() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  const std::string root_ = ::testing::TempDir() + "root_" + std::to_string(::getpid());
};

}  // namespace switchyard
