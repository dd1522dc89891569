// Real sockets against the server: what well-behaved clients send, and what others do.
#include "gateway/api/http_server.h"

#include <absl/synchronization/mutex.h>
#include <absl/synchronization/notification.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "tests/support/raw_client.h"

namespace switchyard::gateway {
namespace {

using ::switchyard::testing::BodyOf;
using ::switchyard::testing::RawClient;
using ::switchyard::testing::StatusOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

// Answers /echo with the method and the body, /stream with three chunks; keeps /hold open until the
// client leaves; floods on /flood until it is cut off.
class Handler : public HttpHandler {
 public:
  void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) override {
    if (request.path == "/echo") {
      exchange->Respond({.body = request.method + " " + request.query + " " + request.body});
    } else if (request.path == "/stream") {
      exchange->StartStream({.content_type = "text/event-stream"});
      exchange->Write("one ");
      exchange->Write("two ");
      exchange->Write("three");
      exchange->End();
    } else if (request.path == "/hold") {
      exchange->OnGone([this] { gone.Notify(); });
      held.Notify();
    } else if (request.path == "/flood") {
      exchange->OnGone([this] { gone.Notify(); });
      exchange->StartStream({});
      flood = std::thread([this, exchange] {
        const std::string part(32 << 10, 'x');
        while (exchange->Write(part)) ++flooded;
      });
    } else {
      exchange->Respond({.status = 404});
    }
  }
  std::string ErrorBody(int, std::string_view message) override { return std::string(message); }

  ~Handler() override {
    if (flood.joinable()) flood.join();
  }

  absl::Notification gone, held;
  std::atomic<int> flooded{0};
  std::thread flood;
};

class HttpServerTest : public ::testing::Test {
 protected:
  void Start() {
    options_.address = options_.address.rfind("unix:", 0) == 0 ? options_.address : "127.0.0.1:0";
    auto server = HttpServer::Create(options_, handler_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
  }

  // One request on a connection of its own that is closed after the answer.
  std::string Ask(const std::string& request) {
    RawClient client(server_->address());
    EXPECT_TRUE(client.connected());
    client.Send(request);
    return client.ReadAll();
  }

  HttpServerOptions options_;
  Handler handler_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersAndKeepsTheConnection) {
  Start();
  RawClient client(server_->address());
  for (int i = 0; i < 3; ++i) {
    client.Send("POST /echo?a=b HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi");
    const std::string answer = client.ReadUntil("POST a=b hi");
    EXPECT_EQ(StatusOf(answer), 200);
    EXPECT_THAT(answer, HasSubstr("connection: keep-alive"));
  }
}

TEST_F(HttpServerTest, TakesChunkedBodiesAndSplitWrites) {
  Start();
  RawClient client(server_->address());
  for (const char* part : {"POST /echo HT", "TP/1.1\r\nhost: x\r\ntransfer-enc",
                           "oding: chunked\r\n\r\n3\r", "\nabc\r\n2\r\nd", "e\r\n0\r\n", "\r\n"}) {
    client.Send(part);
  }
  EXPECT_THAT(client.ReadUntil("abcde"), EndsWith("POST  abcde"));
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrder) {
  Start();
  EXPECT_THAT(Ask("GET /echo?1 HTTP/1.1\r\nhost: x\r\n\r\nGET /stream HTTP/1.1\r\nhost: x\r\n\r\n"
                  "GET /echo?2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
              ::testing::AllOf(HasSubstr("GET 1 "), HasSubstr("three\r\n0\r\n\r\nHTTP/1.1 200"),
                               EndsWith("GET 2 ")));
}

TEST_F(HttpServerTest, StreamsInChunks) {
  Start();
  const std::string answer = Ask("GET /stream HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n"));
  EXPECT_EQ(BodyOf(answer), "one two three");
}

TEST_F(HttpServerTest, StreamsToHttp10ClientsUntilClose) {
  Start();
  const std::string answer = Ask("GET /stream HTTP/1.0\r\n\r\n");
  EXPECT_THAT(answer, EndsWith("\r\n\r\none two three"));
  EXPECT_THAT(answer, Not(HasSubstr("chunked")));
}

TEST_F(HttpServerTest, SendsContinueWhenAsked) {
  Start();
  RawClient client(server_->address());
  client.Send(
      "POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("abc");
  EXPECT_THAT(client.ReadUntil("POST  abc"), HasSubstr("200 OK"));
}

TEST_F(HttpServerTest, LeavesTheBodyOfHeadOut) {
  Start();
  const std::string answer = Ask("HEAD /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("content-length: 5\r\n"));
  EXPECT_EQ(BodyOf(answer), "");
}

TEST_F(HttpServerTest, RefusesLargeBodiesByLengthAndByChunks) {
  options_.limits.body_bytes = 1000;
  Start();
  EXPECT_EQ(StatusOf(Ask("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n")), 413);
  EXPECT_EQ(
      StatusOf(Ask("POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n" +
                   std::string(1001, 'x') + "\r\n0\r\n\r\n")),
      413);
  EXPECT_EQ(
      StatusOf(Ask(
          "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n" +
          std::string(1000, 'x'))),
      200);
}

TEST_F(HttpServerTest, AnswersBeforeClosingOnAClientThatStillSends) {
  options_.limits.body_bytes = 1000;
  Start();
  RawClient client(server_->address());
  client.Send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 400000\r\n\r\n");
  client.Send(std::string(400000, 'x'));
  const std::string answer = client.ReadAll();
  EXPECT_EQ(StatusOf(answer), 413);
  EXPECT_THAT(answer, HasSubstr("larger than this server takes"));
}

TEST_F(HttpServerTest, RefusesLargeHeaders) {
  Start();
  EXPECT_EQ(StatusOf(Ask("GET /echo HTTP/1.1\r\nx: " + std::string(40 << 10, 'x') + "\r\n\r\n")),
            431);
  EXPECT_EQ(StatusOf(Ask("GET /" + std::string(100 << 10, 'x'))), 431);
}

TEST_F(HttpServerTest, RefusesWhatIsNotHttp) {
  Start();
  EXPECT_EQ(StatusOf(Ask("\x16\x03\x01 hello\r\n\r\n")), 400);
  EXPECT_EQ(StatusOf(Ask("GET /echo HTTP/1.1\r\nbad header line\r\n\r\n")), 400);
  // Two lengths of one body are how requests are smuggled.
  EXPECT_EQ(StatusOf(Ask("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: "
                         "4\r\n\r\nabcd")),
            400);
  EXPECT_EQ(
      StatusOf(Ask("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: "
                   "chunked\r\n\r\n0\r\n\r\n")),
      400);
}

TEST_F(HttpServerTest, TimesOutSlowHeadersAndBodies) {
  options_.header_timeout = absl::Milliseconds(60);
  options_.body_timeout = absl::Milliseconds(60);
  Start();
  EXPECT_EQ(StatusOf(Ask("GET /echo HTTP/1.1\r\nhost:")), 408);
  EXPECT_EQ(StatusOf(Ask("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")), 408);
  EXPECT_EQ(Ask(""), "");
}

TEST_F(HttpServerTest, ClosesIdleConnections) {
  options_.idle_timeout = absl::Milliseconds(40);
  Start();
  RawClient client(server_->address());
  client.Send("GET /echo HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_EQ(StatusOf(client.ReadAll()), 200);
  EXPECT_TRUE(client.saw_end());
}

TEST_F(HttpServerTest, TellsOfClientsThatCloseOrHalfClose) {
  Start();
  RawClient client(server_->address());
  client.Send("GET /hold HTTP/1.1\r\nhost: x\r\n\r\n");
  handler_.held.WaitForNotification();
  client.HalfClose();
  EXPECT_TRUE(handler_.gone.WaitForNotificationWithTimeout(absl::Seconds(10)));
  EXPECT_EQ(client.ReadAll(), "");
}

TEST_F(HttpServerTest, CutsOffAClientThatDoesNotRead) {
  options_.max_buffered_bytes = 256 << 10;
  Start();
  RawClient client(server_->address(), 4096);
  client.Send("GET /flood HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_TRUE(handler_.gone.WaitForNotificationWithTimeout(absl::Seconds(10)));
  EXPECT_EQ(server_->stats().clients_cut_off, 1u);
  // What was taken is the bounded buffer, one write in flight and the sockets' own buffers.
  EXPECT_LT(handler_.flooded, 1024);
}

TEST_F(HttpServerTest, CutsOffAnAnswerThatIsNotTaken) {
  options_.write_timeout = absl::Milliseconds(60);
  options_.max_buffered_bytes = 64 << 20;
  Start();
  RawClient client(server_->address(), 4096);
  client.Send("GET /flood HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_TRUE(handler_.gone.WaitForNotificationWithTimeout(absl::Seconds(10)));
}

TEST_F(HttpServerTest, RefusesMoreConnectionsThanItMay) {
  options_.max_connections = 1;
  Start();
  RawClient first(server_->address());
  first.Send("GET /echo HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_EQ(StatusOf(first.ReadUntil("GET  ")), 200);
  RawClient second(server_->address());
  EXPECT_EQ(StatusOf(second.ReadAll()), 503);
  EXPECT_EQ(server_->stats().connections_refused, 1u);
}

TEST_F(HttpServerTest, DrainClosesIdleConnectionsAndEndsOthersAfterTheirAnswer) {
  Start();
  RawClient idle(server_->address());
  idle.Send("GET /echo HTTP/1.1\r\nhost: x\r\n\r\n");
  idle.ReadUntil("GET  ");
  server_->BeginDrain();
  EXPECT_EQ(idle.ReadAll(), "");
  EXPECT_TRUE(idle.saw_end());
  RawClient late(server_->address());
  late.Send("GET /echo HTTP/1.1\r\nhost: x\r\n\r\n");
  EXPECT_THAT(late.ReadAll(), HasSubstr("connection: close"));
}

TEST_F(HttpServerTest, StopEndsWhatIsUnderWay) {
  Start();
  RawClient client(server_->address());
  client.Send("GET /hold HTTP/1.1\r\nhost: x\r\n\r\n");
  handler_.held.WaitForNotification();
  server_->Stop();
  EXPECT_TRUE(handler_.gone.HasBeenNotified());
  EXPECT_EQ(client.ReadAll(), "");
  EXPECT_EQ(server_->stats().open_connections, 0);
}

TEST_F(HttpServerTest, ListensOnUnixSocketsAndTakesOverADeadOne) {
  options_.address = "unix:/tmp/http_server_test." + std::to_string(::getpid());
  Start();
  EXPECT_EQ(StatusOf(Ask("GET /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")), 200);
  EXPECT_FALSE(HttpServer::Create(options_, handler_).ok());  // in use
  server_.reset();
  EXPECT_NE(::access(options_.address.c_str() + 5, F_OK), 0);
}

TEST_F(HttpServerTest, NamesWhatIsWrongWithAnAddress) {
  for (const char* address : {"nonsense", "127.0.0.1:99999", "127.0.0.1:x", "unix:"}) {
    options_.address = address;
    const auto server = HttpServer::Create(options_, handler_);
    ASSERT_FALSE(server.ok());
    EXPECT_THAT(std::string(server.status().message()), HasSubstr(address));
  }
  options_.address = "127.0.0.1:0";
  options_.tls_cert = "/no/such/cert.pem";
  options_.tls_key = "/no/such/key.pem";
  EXPECT_THAT(std::string(HttpServer::Create(options_, handler_).status().message()),
              HasSubstr("--tls-cert /no/such/cert.pem"));
}

}  // namespace
}  // namespace switchyard::gateway
