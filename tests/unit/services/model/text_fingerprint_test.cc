#include "services/model/text_fingerprint.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace switchyard {
namespace {

class TextFingerprintTest : public ::testing::Test {
 protected:
  TextFingerprintTest() { std::filesystem::create_directories(dir_); }
  ~TextFingerprintTest() override { std::filesystem::remove_all(dir_); }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(dir_ + "/" + name) << text;
  }
  std::string Fingerprint() { return TextFingerprint(dir_).value(); }

  const std::string dir_ = ::testing::TempDir() + "/text_fingerprint." + std::to_string(::getpid());
};

TEST_F(TextFingerprintTest, EveryFileCountsAndWeightsDoNot) {
  Write("config.json", "{}");
  const std::string bare = Fingerprint();
  EXPECT_EQ(bare.size(), 32u);
  Write("tokenizer.json", "");
  const std::string with_tokenizer = Fingerprint();
  EXPECT_NE(with_tokenizer, bare);
  Write("chat_template.jinja", "x");
  const std::string with_template = Fingerprint();
  EXPECT_NE(with_template, with_tokenizer);
  Write("model.safetensors", "weights");
  EXPECT_EQ(Fingerprint(), with_template);
}

TEST_F(TextFingerprintTest, BytesDoNotMoveBetweenFiles) {
  Write("config.json", "ab");
  Write("tokenizer.json", "c");
  const std::string one = Fingerprint();
  Write("config.json", "a");
  Write("tokenizer.json", "bc");
  EXPECT_NE(Fingerprint(), one);
}

TEST_F(TextFingerprintTest, NeedsAConfig) {
  EXPECT_EQ(TextFingerprint(dir_).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace switchyard
