// Against no etcd at all; tests/cluster/discovery_test.cc is against one.
#include "services/discovery/etcd_client.h"

#include <gmock/gmock.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/synchronization/notification.h"

namespace switchyard::discovery {
namespace {

using ::testing::HasSubstr;

TEST(PrefixEnd, IsTheFirstKeyAfterAllThatBeginAlike) {
  EXPECT_EQ(PrefixEnd("workers/"), "workers0");
  EXPECT_EQ(PrefixEnd("a\xff\xff"), "b");
  EXPECT_EQ(PrefixEnd(""), std::string(1, '\0'));
}

TEST(EtcdClient, RefusesUrlsThatAreNone) {
  for (const char* url : {"", "localhost:2379", "http://", "http://localhost", "ftp://a:1",
                          "http://unix:/run/etcd", "http://a:b"}) {
    const auto client = EtcdClient::Create({.urls = {url}});
    EXPECT_TRUE(absl::IsInvalidArgument(client.status())) << url;
    EXPECT_THAT(std::string(client.status().message()), HasSubstr("--etcd")) << url;
  }
  EXPECT_FALSE(EtcdClient::Create(EtcdOptions{}).ok());
}

TEST(EtcdClient, CertificatesWithoutHttpsAreAMistake) {
  const auto client = EtcdClient::Create(
      {.urls = {"http://localhost:2379"}, .tls = {.ca = "ca.pem", .flags = "--etcd"}});
  EXPECT_TRUE(absl::IsInvalidArgument(client.status()));
}

TEST(EtcdClient, KeysStandBelowThePrefix) {
  const auto client = EtcdClient::Create({.urls = {"http://localhost:2379/"}, .prefix = "/a/b/"});
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_EQ((*client)->Key("workers/x"), "/a/b/workers/x");
}

// Takes calls and answers none.
class Silent : public etcd::KV::Service {
 public:
  grpc::Status Range(grpc::ServerContext* context, const etcd::RangeRequest*,
                     etcd::RangeResponse*) override {
    if (!came.HasBeenNotified()) came.Notify();
    while (!context->IsCancelled()) std::this_thread::yield();
    return grpc::Status::CANCELLED;
  }
  absl::Notification came;
};

TEST(EtcdClient, ACallGoesToTheNextServerAndCanBeStopped) {
  Silent silent;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&silent);
  const auto server = builder.BuildAndStart();
  // Nobody listens at the first.
  const auto client =
      EtcdClient::Create({.urls = {"http://127.0.0.1:1", fmt::format("http://127.0.0.1:{}", port)},
                          .timeout = absl::Minutes(5)});
  ASSERT_TRUE(client.ok());
  Stopper stopper;
  std::thread call([&] {
    etcd::RangeRequest request;
    request.set_key("a");
    EXPECT_TRUE(absl::IsCancelled((*client)->Range(request, stopper).status()));
  });
  silent.came.WaitForNotification();
  stopper.Stop();
  call.join();
  const EtcdHealth health = (*client)->health();
  EXPECT_EQ(health.errors, 1u);
  EXPECT_TRUE(absl::IsUnavailable(health.status)) << health.status;
  EXPECT_THAT(std::string(health.status.message()), HasSubstr("127.0.0.1:1"));
}

}  // namespace
}  // namespace switchyard::discovery
