#include "tools/cli/http_client.h"

#include <curl/curl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

namespace switchyard::cli {
namespace {

using testing::HasSubstr;

TEST(HttpClientTest, TheBaseOfAUrlHasNoSlashAndNoVersion) {
  for (const char* url : {"http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1//"}) {
    EXPECT_EQ(TargetOf(url).base, "http://h:1") << url;
    EXPECT_EQ(TargetOf(url).socket, "") << url;
  }
  EXPECT_EQ(TargetOf("https://h/moe/v1").base, "https://h/moe");
  EXPECT_EQ(TargetOf("https://h/av1").base, "https://h/av1");
}

TEST(HttpClientTest, AUnixSocketIsTakenAsItIs) {
  const HttpTarget target = TargetOf("unix:/run/v1");
  EXPECT_EQ(target.socket, "/run/v1");
  EXPECT_EQ(target.base, "http://localhost");
}

TEST(HttpClientTest, TheFirstKeyOfAFileIsSent) {
  const std::string path = testing::TempDir() + "/client_keys";
  HttpOptions options{.api_key = "of a flag", .api_key_file = path};
  std::ofstream(path) << "# ours\n\n  abc \nxyz\n";
  ASSERT_TRUE(ReadApiKey(options).ok());
  EXPECT_EQ(options.api_key, "abc");
  std::ofstream(path) << "# none\n";
  EXPECT_THAT(std::string(ReadApiKey(options).message()), HasSubstr(path + ": holds no key"));
  std::remove(path.c_str());
  EXPECT_THAT(std::string(ReadApiKey(options).message()), HasSubstr("--api-key-file: " + path));
  HttpOptions without{.api_key = "of a flag"};
  ASSERT_TRUE(ReadApiKey(without).ok());
  EXPECT_EQ(without.api_key, "of a flag");
}

TEST(HttpClientTest, WhereNobodyListensTheErrorSaysWhatToDo) {
  const std::string error = TransferError(CURLE_COULDNT_CONNECT, "http://127.0.0.1:1");
  EXPECT_THAT(error, HasSubstr("no server listens at http://127.0.0.1:1"));
  EXPECT_THAT(error, HasSubstr("switchyard serve"));
  EXPECT_THAT(error, HasSubstr("--url"));
  EXPECT_EQ(TransferError(CURLE_OPERATION_TIMEDOUT, "u").find("serve"), std::string::npos);
}

TEST(HttpClientTest, AListOfModelsIsReadWhateverItsTypes) {
  EXPECT_EQ(ServedModel(R"({"data":[{"id":"m"}]})").value(), "m");
  for (const char* body : {"", "[]", R"({"data":[]})", R"({"data":["m"]})", R"({"data":[{}]})",
                           R"({"data":[{"id":7}]})", R"({"data":{"id":"m"}})"}) {
    EXPECT_THAT(std::string(ServedModel(body).status().message()), HasSubstr("--model")) << body;
  }
}

}  // namespace
}  // namespace switchyard::cli
