// Real sockets against the server: what well-behaved clients send, and what others do.
#include "gateway/api/http_server.h"

#include <absl/synchronization/mutex.h>
#include <absl/synchronization/notification.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

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
// client leaves; floods on /flood until it is cut off; answers /large with one event and /whole
// with one body of that many bytes; leaves /later to the test.
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
    } else if (request.path == "/large") {
      exchange->StartStream({});
      large_taken = exchange->Write(std::string(std::stoi(request.query), 'x'));
      exchange->End();
    } else if (request.path == "/whole") {
      exchange->Respond({.body = std::string(std::stoi(request.query), 'x')});
    } else if (request.path == "/later") {
      later = exchange;
      held.Notify();
    } else {
      exchange->Respond({.status = 404});
    }
  }
  std::optional<HttpResponse> RefuseHead(const HttpRequest& head) override {
    if (head.Header("authorization") != "no") return std::nullopt;
    return HttpResponse{.status = 401, .body = head.method + " " + head.path};
  }
  HttpResponse Refusal(int status, const std::string& message) override {
    return {.status = status, .headers = {{"x-refused", "yes"}}, .body = message};
  }

  ~Handler() override {
    if (flood.joinable()) flood.join();
  }

  absl::Notification gone, held;
  std::shared_ptr<HttpExchange> later;
  std::atomic<bool> large_taken{false};
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
  EXPECT_THAT(answer, HasSubstr("1000 bytes that this server takes"));
}

TEST_F(HttpServerTest, RefusesAHeadWithoutReadingItsBody) {
  Start();
  for (const char* expect : {"", "expect: 100-continue\r\n"}) {
    RawClient client(server_->address());
    client.Send("POST /echo HTTP/1.1\r\nhost: x\r\nauthorization: no\r\n" + std::string(expect) +
                "content-length: 1000000\r\n\r\n");
    const std::string answer = client.ReadAll();  // nothing of the body was sent
    EXPECT_EQ(StatusOf(answer), 401);
    EXPECT_EQ(BodyOf(answer), "POST /echo");
    EXPECT_THAT(answer, HasSubstr("connection: close"));
  }
  EXPECT_EQ(server_->stats().clients_cut_off, 0u);
}

TEST_F(HttpServerTest, NamesTheLimitThatARequestExceeds) {
  options_.limits = {.header_bytes = 2000, .body_bytes = 1234};
  Start();
  EXPECT_THAT(Ask("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1235\r\n\r\n"),
              HasSubstr("1234 bytes"));
  EXPECT_THAT(Ask("GET /echo HTTP/1.1\r\nhost: x\r\nlong: " + std::string(3000, 'x') + "\r\n\r\n"),
              HasSubstr("2000 bytes"));
}

TEST_F(HttpServerTest, RefusesLargeHeaders) {
  Start();
  EXPECT_EQ(StatusOf(Ask("GET /echo HTTP/1.1\r\nx: " + std::string(40 << 10, 'x') + "\r\n\r\n")),
            431);
  EXPECT_EQ(StatusOf(Ask("GET /" + std::string(100 << 10, 'x'))), 431);
}

TEST_F(HttpServerTest, RefusesWhatIsNotHttp) {
  Start();
  const std::string refused = Ask("\x16\x03\x01 hello\r\n\r\n");
  EXPECT_EQ(StatusOf(refused), 400);
  EXPECT_THAT(refused, HasSubstr("x-refused: yes\r\n"));
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

TEST_F(HttpServerTest, TellsOfClientsThatClose) {
  for (const char* address : {"127.0.0.1:0", "unix:/tmp/http_server_test.closes"}) {
    options_.address = address;
    Handler handler;
    auto server = HttpServer::Create(options_, handler);
    ASSERT_TRUE(server.ok()) << server.status();
    RawClient client((*server)->address());
    client.Send("GET /hold HTTP/1.1\r\nhost: x\r\n\r\n");
    handler.held.WaitForNotification();
    client.Close();
    EXPECT_TRUE(handler.gone.WaitForNotificationWithTimeout(absl::Seconds(10))) << address;
  }
}

TEST_F(HttpServerTest, AnswersAClientThatHasClosedItsSendingSide) {
  Start();
  RawClient client(server_->address());
  client.Send("GET /later HTTP/1.1\r\nhost: x\r\n\r\nGET /echo?2 HTTP/1.1\r\nhost: x\r\n\r\n");
  client.HalfClose();
  handler_.held.WaitForNotification();
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  handler_.later->Respond({.body = "late"});
  const std::string answers = client.ReadAll();
  EXPECT_EQ(StatusOf(answers), 200);
  EXPECT_THAT(answers, HasSubstr("late"));
  EXPECT_THAT(answers, EndsWith("GET 2 "));  // pipelined before the end
  EXPECT_TRUE(client.saw_end());
}

TEST_F(HttpServerTest, StreamsToAClientThatHasClosedItsSendingSideUntilItIsGone) {
  Start();
  RawClient client(server_->address());
  client.Send("GET /later HTTP/1.1\r\nhost: x\r\n\r\n");
  handler_.held.WaitForNotification();
  handler_.later->OnGone([this] { handler_.gone.Notify(); });
  handler_.later->StartStream({});
  client.ReadUntil("\r\n\r\n");
  client.HalfClose();
  EXPECT_TRUE(handler_.later->Write("more"));
  EXPECT_THAT(client.ReadUntil("more"), HasSubstr("more"));
  client.Close();
  const absl::Time limit = absl::Now() + absl::Seconds(10);
  while (handler_.later->Write("nobody") && absl::Now() < limit) {
  }
  EXPECT_TRUE(handler_.gone.WaitForNotificationWithTimeout(absl::Seconds(10)));
}

TEST_F(HttpServerTest, TakesAHalfClosedHttp10ClientAsGone) {
  Start();
  RawClient client(server_->address());
  client.Send("GET /hold HTTP/1.0\r\n\r\n");
  client.HalfClose();
  EXPECT_TRUE(handler_.gone.WaitForNotificationWithTimeout(absl::Seconds(10)));
  EXPECT_EQ(client.ReadAll(), "");
}

TEST_F(HttpServerTest, SendsAnEventLargerThanWhatMayWait) {
  options_.max_buffered_bytes = 64 << 10;
  Start();
  const std::string answer =
      Ask("GET /large?1000000 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
  EXPECT_EQ(BodyOf(answer).size(), 1'000'000u);
  EXPECT_TRUE(handler_.large_taken);
  EXPECT_EQ(server_->stats().clients_cut_off, 0u);
}

TEST_F(HttpServerTest, WaitsUntilASlowReaderHasItsAnswer) {
  Start();
  EXPECT_TRUE(server_->WaitUntilAnswered(absl::ZeroDuration()));
  RawClient client(server_->address());
  client.Send("GET /whole?16000000 HTTP/1.1\r\nhost: x\r\n\r\n");
  std::string answer = client.ReadUntil("\r\n\r\n");
  server_->BeginDrain();
  EXPECT_FALSE(server_->WaitUntilAnswered(absl::Milliseconds(20)));
  std::thread reader([&] { answer += client.ReadAll(); });
  EXPECT_TRUE(server_->WaitUntilAnswered(absl::Seconds(10)));
  server_->Stop();
  reader.join();
  EXPECT_EQ(BodyOf(answer).size(), 16'000'000u);
}

TEST_F(HttpServerTest, BoundsTheBodiesOfAllConnectionsTogether) {
  options_.max_body_bytes_in_all = 1000;
  Start();
  const std::string head =
      "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: ";
  RawClient first(server_->address());
  first.Send(head + "900\r\nexpect: 100-continue\r\n\r\n");
  first.ReadUntil("100 Continue\r\n\r\n");
  first.Send(std::string(800, 'x'));
  // How far the server has read the first body shows only by the second's refusal.
  const absl::Time limit = absl::Now() + absl::Seconds(10);
  std::string second;
  do {
    second = Ask(head + "300\r\n\r\n" + std::string(300, 'y'));
  } while (StatusOf(second) == 200 && absl::Now() < limit);
  EXPECT_EQ(StatusOf(second), 503);
  first.Send(std::string(100, 'x'));
  EXPECT_EQ(StatusOf(first.ReadAll()), 200);
  EXPECT_EQ(StatusOf(Ask(head + "300\r\n\r\n" + std::string(300, 'y'))), 200);  // given back
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

// A certificate with its key, which is also its own CA, and a key of another.
class HttpServerTlsTest : public HttpServerTest {
 protected:
  void SetUp() override {
    directory_ = ::testing::TempDir() + "/http_server_tls." + std::to_string(::getpid());
    std::filesystem::create_directories(directory_);
    for (const char* name : {"own", "other"}) {
      const std::string to = directory_ + "/" + name;
      const std::string command =
          "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "
          "/CN=localhost -keyout " +
          to + ".key -out " + to + ".pem 2>/dev/null";
      ASSERT_EQ(std::system(command.c_str()), 0) << command;
    }
    options_.tls_cert = directory_ + "/own.pem";
    options_.tls_key = directory_ + "/own.key";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string directory_;
};

struct Freed {
  void operator()(SSL_CTX* p) const { ::SSL_CTX_free(p); }
  void operator()(SSL* p) const { ::SSL_free(p); }
  void operator()(SSL_SESSION* p) const { ::SSL_SESSION_free(p); }
};

// One request over TLS; `session` is resumed if there is one, and replaced by the new one.
std::string AskTls(SSL_CTX* context, const std::string& address,
                   std::unique_ptr<SSL_SESSION, Freed>* session, bool* resumed) {
  const std::unique_ptr<BIO, decltype(&::BIO_free_all)> bio(::BIO_new_connect(address.c_str()),
                                                            &::BIO_free_all);
  const std::unique_ptr<SSL, Freed> ssl(::SSL_new(context));
  if (::BIO_do_connect(bio.get()) != 1) return "no connection";
  ::BIO_up_ref(bio.get());
  ::SSL_set_bio(ssl.get(), bio.get(), bio.get());
  if (*session) ::SSL_set_session(ssl.get(), session->get());
  if (::SSL_connect(ssl.get()) != 1) return "no handshake";
  *resumed = ::SSL_session_reused(ssl.get()) == 1;
  const std::string request = "GET /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
  ::SSL_write(ssl.get(), request.data(), static_cast<int>(request.size()));
  std::string answer;
  char bytes[4096];
  int n = 0;
  while ((n = ::SSL_read(ssl.get(), bytes, sizeof bytes)) > 0) answer.append(bytes, n);
  // The server says that this is the end; a connection that only closes may have been cut.
  if (::SSL_get_error(ssl.get(), n) != SSL_ERROR_ZERO_RETURN) return "no close_notify";
  session->reset(::SSL_get1_session(ssl.get()));
  ::SSL_shutdown(ssl.get());
  return answer;
}

TEST_F(HttpServerTlsTest, ResumesSessionsOfVerifiedClients) {
  options_.tls_ca = options_.tls_cert;
  Start();
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    const std::unique_ptr<SSL_CTX, Freed> context(::SSL_CTX_new(::TLS_client_method()));
    ::SSL_CTX_set_min_proto_version(context.get(), version);
    ::SSL_CTX_set_max_proto_version(context.get(), version);
    ASSERT_EQ(::SSL_CTX_use_certificate_chain_file(context.get(), options_.tls_cert.c_str()), 1);
    ASSERT_EQ(
        ::SSL_CTX_use_PrivateKey_file(context.get(), options_.tls_key.c_str(), SSL_FILETYPE_PEM),
        1);
    std::unique_ptr<SSL_SESSION, Freed> session;
    bool resumed = true;
    EXPECT_EQ(StatusOf(AskTls(context.get(), server_->address(), &session, &resumed)), 200);
    EXPECT_FALSE(resumed);
    EXPECT_EQ(StatusOf(AskTls(context.get(), server_->address(), &session, &resumed)), 200);
    EXPECT_TRUE(resumed) << version;
  }
}

// The certificate that the server shows now, in PEM.
std::string ShownCertificate(const std::string& address) {
  const std::unique_ptr<SSL_CTX, Freed> context(::SSL_CTX_new(::TLS_client_method()));
  const std::unique_ptr<BIO, decltype(&::BIO_free_all)> bio(::BIO_new_connect(address.c_str()),
                                                            &::BIO_free_all);
  const std::unique_ptr<SSL, Freed> ssl(::SSL_new(context.get()));
  if (::BIO_do_connect(bio.get()) != 1) return "no connection";
  ::BIO_up_ref(bio.get());
  ::SSL_set_bio(ssl.get(), bio.get(), bio.get());
  if (::SSL_connect(ssl.get()) != 1) return "no handshake";
  const std::unique_ptr<X509, decltype(&::X509_free)> shown(::SSL_get1_peer_certificate(ssl.get()),
                                                            &::X509_free);
  const std::unique_ptr<BIO, decltype(&::BIO_free_all)> text(::BIO_new(::BIO_s_mem()),
                                                             &::BIO_free_all);
  ::PEM_write_bio_X509(text.get(), shown.get());
  char* data = nullptr;
  const long size = BIO_get_mem_data(text.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}

TEST_F(HttpServerTlsTest, ShowsARenewedCertificateAndKeepsTheOldOneWhereTheNewIsBroken) {
  options_.tls_look_every = absl::ZeroDuration();
  Start();
  const auto read = [this](const std::string& name) {
    std::ifstream in(directory_ + "/" + name);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const auto put = [this](const std::string& text, const std::string& name) {
    const std::string to = directory_ + "/" + name;
    std::ofstream(to + ".new") << text;
    std::filesystem::rename(to + ".new", to);
  };
  const std::string first = read("own.pem"), second = read("other.pem");
  EXPECT_EQ(ShownCertificate(server_->address()), first);
  put(second, "own.pem");  // without its key as yet
  EXPECT_EQ(ShownCertificate(server_->address()), first);
  put(read("other.key"), "own.key");
  EXPECT_EQ(ShownCertificate(server_->address()), second);
  put("nothing in PEM", "own.pem");
  EXPECT_EQ(ShownCertificate(server_->address()), second);
}

TEST_F(HttpServerTlsTest, NamesTheFilesOfAKeyThatIsNotTheCertificates) {
  options_.tls_key = directory_ + "/other.key";
  const auto server = HttpServer::Create(options_, handler_);
  ASSERT_FALSE(server.ok());
  EXPECT_THAT(std::string(server.status().message()),
              ::testing::AllOf(HasSubstr("other.key"), HasSubstr("own.pem")));
}

}  // namespace
}  // namespace switchyard::gateway
