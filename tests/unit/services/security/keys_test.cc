#include "services/security/keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "services/security/tls.h"

namespace switchyard::security {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string File(const std::string& text) {
  const std::string path = ::testing::TempDir() + "keys_" + std::to_string(::getpid()) + "_" +
                           ::testing::UnitTest::GetInstance()->current_test_info()->name();
  std::ofstream(path) << text;
  ::chmod(path.c_str(), 0600);
  return path;
}

TEST(KeySet, LoadsOneKeyALineAndChecksThem) {
  auto keys = KeySet::Load(File("# clients\n\nsk-one\r\n  sk-two  \n#sk-off\n"));
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ(keys->size(), 2u);
  EXPECT_TRUE(keys->Contains("sk-one"));
  EXPECT_TRUE(keys->Contains("sk-two"));
  for (const char* wrong : {"", "sk-on", "sk-onee", "sk-onf", "sk-off", "#sk-off", " sk-one"}) {
    EXPECT_FALSE(keys->Contains(wrong)) << wrong;
  }
}

TEST(KeySet, RefusesBadFilesByNameAndLine) {
  const std::string path = File("sk-one\nsk two\n");
  EXPECT_THAT(std::string(KeySet::Load(path).status().message()),
              AllOf(HasSubstr(path), HasSubstr("line 2"), ::testing::Not(HasSubstr("sk two"))));
  EXPECT_THAT(std::string(KeySet::Load(File("# none\n")).status().message()),
              HasSubstr("holds no key"));
  EXPECT_FALSE(KeySet::Load("/nowhere/keys").ok());
}

TEST(IsLocal, KnowsLoopbackAndSockets) {
  for (const char* local :
       {"127.0.0.1:1", "127.8.0.1:1", "localhost:1", "[::1]:1", "[0::1]:1", "unix:/a"}) {
    EXPECT_TRUE(IsLocal(local)) << local;
  }
  for (const char* other : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "host:1", "127.evil.example:1",
                            "127.0.0.1.evil:1", "[::127.0.0.1]:1", "::1:1"}) {
    EXPECT_FALSE(IsLocal(other)) << other;
  }
}

std::string Warned(std::string_view address, const TlsFiles& files, bool keyless) {
  ::testing::internal::CaptureStderr();
  WarnIfExposed(address, files, keyless);
  return ::testing::internal::GetCapturedStderr();
}

TEST(WarnIfExposed, NamesEachThingThatIsMissing) {
  const TlsFiles tls = {.cert = "c", .key = "k"}, mutual = {.cert = "c", .key = "k", .ca = "a"};
  EXPECT_THAT(Warned("0.0.0.0:1", {}, true),
              AllOf(HasSubstr("0.0.0.0:1 can be reached"), HasSubstr("without TLS and without an"),
                    HasSubstr("--tls-cert"), HasSubstr("--api-key-file")));
  EXPECT_THAT(Warned("0.0.0.0:1", {}, false),
              AllOf(HasSubstr("without TLS;"), ::testing::Not(HasSubstr("key-file"))));
  EXPECT_THAT(Warned("0.0.0.0:1", tls, true),
              AllOf(HasSubstr("without an API key"), ::testing::Not(HasSubstr("TLS"))));
  EXPECT_EQ(Warned("0.0.0.0:1", tls, false), "");
  EXPECT_EQ(Warned("0.0.0.0:1", mutual, true), "");
  EXPECT_EQ(Warned("127.0.0.1:1", {}, true), "");
}

}  // namespace
}  // namespace switchyard::security
