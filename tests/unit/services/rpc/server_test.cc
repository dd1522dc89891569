#include "services/rpc/server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/client_unary_call.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "grpc/health/v1/health.grpc.pb.h"
#include "services/rpc/channel.h"
#include "services/rpc/status_map.h"

namespace switchyard::rpc {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Health = ::grpc::health::v1::Health;

// What the health service says, or the error of asking.
std::string Check(const std::string& address, const security::TlsFiles& tls = {}) {
  auto channel = Connect(address, tls);
  if (!channel.ok()) return std::string(channel.status().message());
  ::grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  ::grpc::health::v1::HealthCheckResponse response;
  const ::grpc::Status status = Health::NewStub(*channel)->Check(&context, {}, &response);
  if (!status.ok()) return FromGrpc(status).ToString();
  return ::grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status());
}

std::unique_ptr<Server> MustStart(const ServerOptions& options) {
  auto server = Server::Start(options, [](::grpc::ServerBuilder&) {});
  EXPECT_TRUE(server.ok()) << server.status();
  return std::move(server).value();
}

// A folder with a CA, and certificates made by it, of the openssl command line.
class Certificates {
 public:
  Certificates() {
    std::string name = ::testing::TempDir() + "certs_XXXXXX";
    dir_ = ::mkdtemp(name.data());
    Run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-keyout ca.key -out ca.pem -subj /CN=test-ca");
    Make("server");
    Make("client");
    Run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-keyout other.key -out other.pem -subj /CN=other-ca");
  }
  ~Certificates() { std::filesystem::remove_all(dir_); }

  void Make(const std::string& name) {
    std::ofstream(dir_ + "/ext") << "subjectAltName=IP:127.0.0.1,DNS:localhost\n";
    Run("openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout " + name +
        ".key -out " + name + ".csr -subj /CN=" + name);
    Run("openssl x509 -req -in " + name +
        ".csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
        "-extfile ext -out " +
        name + ".pem");
  }
  std::string operator[](const std::string& file) const { return dir_ + "/" + file; }

 private:
  void Run(const std::string& command) {
    const std::string line = "cd " + dir_ + " && " + command + " >log 2>&1";
    EXPECT_EQ(std::system(line.c_str()), 0) << command;
  }
  std::string dir_;
};

TEST(Server, HealthFollowsReadinessOverTcpAndUnix) {
  const std::string path = "unix:" + ::testing::TempDir() + "s" + std::to_string(::getpid());
  for (const std::string& listen : {std::string("127.0.0.1:0"), path}) {
    auto server = MustStart({.listen = listen});
    EXPECT_EQ(server->address().substr(0, 5), listen.substr(0, 5));
    EXPECT_FALSE(server->address().ends_with(":0"));
    EXPECT_EQ(Check(server->address()), "NOT_SERVING");
    server->SetReady(true);
    EXPECT_EQ(Check(server->address()), "SERVING");
    server->SetReady(false);
    EXPECT_EQ(Check(server->address()), "NOT_SERVING");
  }
}

TEST(Server, TakenPortIsAnErrorThatNamesIt) {
  auto first = MustStart({.listen = "127.0.0.1:0"});
  auto second = Server::Start({.listen = first->address()}, [](::grpc::ServerBuilder&) {});
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()),
              AllOf(HasSubstr(first->address()), HasSubstr("already in use")));
  auto flagged =
      Server::Start({.listen = first->address(), .flag = "--grpc"}, [](::grpc::ServerBuilder&) {});
  EXPECT_THAT(std::string(flagged.status().message()),
              HasSubstr("--grpc " + first->address() + ": cannot listen: Address already in use"));
  auto nowhere = Server::Start({.listen = "no.such.host.invalid:1"}, [](::grpc::ServerBuilder&) {});
  EXPECT_THAT(std::string(nowhere.status().message()), HasSubstr("no.such.host.invalid:1"));
}

TEST(Server, WhatCannotBeListenedOnIsKnownBefore) {
  auto first = MustStart({.listen = "127.0.0.1:0"});
  EXPECT_THAT(std::string(CheckListen(first->address(), {}).message()),
              AllOf(HasSubstr(first->address()), HasSubstr("in use")));
  EXPECT_THAT(std::string(CheckListen(first->address(), {}, "--listen").message()),
              HasSubstr("--listen " + first->address() + ": cannot listen: Address already"));
  EXPECT_FALSE(CheckListen("no-such-host.invalid:1", {}).ok());
  EXPECT_THAT(std::string(CheckListen("127.0.0.1:0", {.cert = "/none.pem", .key = "/k"}).message()),
              HasSubstr("/none.pem"));
  EXPECT_TRUE(CheckListen("127.0.0.1:0", {}).ok());
  const std::string address = first->address();
  first.reset();
  EXPECT_TRUE(CheckListen(address, {}).ok());
}

TEST(Server, ASocketIsTakenFromTheDeadAlone) {
  const std::string file = ::testing::TempDir() + "t" + std::to_string(::getpid());
  auto first = MustStart({.listen = "unix:" + file});
  first->SetReady(true);
  auto second = Server::Start({.listen = "unix:" + file}, [](::grpc::ServerBuilder&) {});
  EXPECT_THAT(std::string(second.status().message()),
              AllOf(HasSubstr(file), HasSubstr("another server listens")));
  EXPECT_EQ(Check(first->address()), "SERVING");  // and still has its socket
  first.reset();
  // What a killed process leaves: bound, but nobody listens.
  sockaddr_un where{};
  where.sun_family = AF_UNIX;
  file.copy(where.sun_path, sizeof where.sun_path - 1);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  ::unlink(file.c_str());
  ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&where), sizeof where), 0);
  ::close(fd);
  MustStart({.listen = "unix:" + file}).reset();
  std::ofstream(file) << "no socket";
  EXPECT_FALSE(Server::Start({.listen = "unix:" + file}, [](::grpc::ServerBuilder&) {}).ok());
  EXPECT_EQ(::unlink(file.c_str()), 0);
}

// A service whose only method fails.
class Failing : public Health::Service {
  ::grpc::Status Check(::grpc::ServerContext*, const ::grpc::health::v1::HealthCheckRequest*,
                       ::grpc::health::v1::HealthCheckResponse*) override {
    return {::grpc::StatusCode::RESOURCE_EXHAUSTED, "full"};
  }
};

TEST(Server, ErrorsAreCountedByMethodAndCode) {
  telemetry::Metrics metrics;
  Failing failing;
  auto server = Server::Start({.listen = "127.0.0.1:0", .metrics = &metrics, .service = "router"},
                              [&](::grpc::ServerBuilder& b) { b.RegisterService(&failing); });
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_THAT(Check((*server)->address()), HasSubstr("full"));
  EXPECT_THAT(metrics.Render(),
              HasSubstr("switchyard_grpc_errors_total{code=\"RESOURCE_EXHAUSTED\","
                        "method=\"/grpc.health.v1.Health/Check\",service=\"router\"} 1"));
}

TEST(Server, MethodsThatNobodyHasAreCountedTogether) {
  telemetry::Metrics metrics;
  auto server = MustStart({.listen = "127.0.0.1:0", .metrics = &metrics, .service = "gateway"});
  const auto channel = Connect(server->address(), {}).value();
  for (const char* path : {"/no.Such/One", "/no.Such/Two"}) {
    ::grpc::ClientContext context;
    ::grpc::health::v1::HealthCheckRequest request;
    ::grpc::health::v1::HealthCheckResponse response;
    const ::grpc::internal::RpcMethod method(path, ::grpc::internal::RpcMethod::NORMAL_RPC);
    ::grpc::internal::BlockingUnaryCallImpl<::grpc::health::v1::HealthCheckRequest,
                                            ::grpc::health::v1::HealthCheckResponse>
        call(channel.get(), method, &context, request, &response);
    EXPECT_EQ(call.status().error_code(), ::grpc::StatusCode::UNIMPLEMENTED);
  }
  const std::string text = metrics.Render();
  EXPECT_THAT(text, HasSubstr("{code=\"UNIMPLEMENTED\",method=\"other\",service=\"gateway\"} 2"));
  EXPECT_THAT(text, Not(HasSubstr("Such")));
}

TEST(Server, AMessageOverTheListenersBoundIsRefused) {
  auto server = MustStart({.listen = "127.0.0.1:0",
                           .service = "gateway",
                           .receive_bytes_max = 1000,
                           .memory_bytes_max = 64 << 20,
                           .streams_max = 2});
  const auto channel = Connect(server->address(), {}).value();
  const auto ask = [&](size_t bytes) {
    ::grpc::ClientContext context;
    ::grpc::health::v1::HealthCheckRequest request;
    request.set_service(std::string(bytes, 'x'));
    ::grpc::health::v1::HealthCheckResponse response;
    return Health::NewStub(channel)->Check(&context, request, &response).error_code();
  };
  EXPECT_EQ(ask(100), ::grpc::StatusCode::NOT_FOUND);  // read, and no such service
  EXPECT_EQ(ask(1100), ::grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(Server, DescriptorOfHealthIsRegistered) {
  const auto* pool = ::google::protobuf::DescriptorPool::generated_pool();
  ASSERT_NE(pool->FindServiceByName("grpc.health.v1.Health"), nullptr);
}

TEST(Tls, ServerIsCheckedAndClientIsAskedForItsCertificate) {
  Certificates certs;
  auto server = MustStart(
      {.listen = "127.0.0.1:0", .tls = {.cert = certs["server.pem"], .key = certs["server.key"]}});
  server->SetReady(true);
  EXPECT_EQ(Check(server->address(), {.ca = certs["ca.pem"]}), "SERVING");
  EXPECT_THAT(Check(server->address(), {.ca = certs["other.pem"]}), HasSubstr("UNAVAILABLE"));
  EXPECT_THAT(Check(server->address()), HasSubstr("UNAVAILABLE"));

  auto mutual = MustStart(
      {.listen = "127.0.0.1:0",
       .tls = {.cert = certs["server.pem"], .key = certs["server.key"], .ca = certs["ca.pem"]}});
  mutual->SetReady(true);
  EXPECT_THAT(Check(mutual->address(), {.ca = certs["ca.pem"]}), HasSubstr("UNAVAILABLE"));
  EXPECT_EQ(Check(mutual->address(),
                  {.cert = certs["client.pem"], .key = certs["client.key"], .ca = certs["ca.pem"]}),
            "SERVING");
  EXPECT_THAT(Check(mutual->address(),
                    {.cert = certs["other.pem"], .key = certs["other.key"], .ca = certs["ca.pem"]}),
              HasSubstr("UNAVAILABLE"));
}

TEST(Tls, BadFilesAreRefusedByName) {
  Certificates certs;
  const auto error = [](const security::TlsFiles& files) {
    return std::string(security::CheckTlsFiles(files).message());
  };
  EXPECT_EQ(error({.cert = certs["server.pem"], .key = certs["server.key"]}), "");
  EXPECT_THAT(error({.cert = certs["server.pem"], .key = certs["client.key"]}),
              AllOf(HasSubstr("client.key: is not the private key of"), HasSubstr("server.pem")));
  EXPECT_THAT(error({.cert = certs["server.key"], .key = certs["server.key"]}),
              HasSubstr("server.key: holds no certificate"));
  EXPECT_THAT(error({.cert = certs["server.pem"]}), HasSubstr("--tls-key"));
  EXPECT_THAT(error({.ca = certs["missing.pem"]}), HasSubstr("missing.pem"));
  EXPECT_THAT(error({.cert = certs["server.pem"], .flags = "--router-tls"}),
              AllOf(HasSubstr("--router-tls-cert"), HasSubstr("--router-tls-key")));
  EXPECT_THAT(error({.ca = certs["missing.pem"], .flags = "--router-tls"}),
              HasSubstr("--router-tls-ca"));
}

}  // namespace
}  // namespace switchyard::rpc
