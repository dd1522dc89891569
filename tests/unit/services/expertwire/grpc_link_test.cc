// The gRPC ends of the wire against peers that behave badly.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <deque>

#include "services/base/status.h"
#include "services/expertwire/codec.h"
#include "services/expertwire/grpc_server.h"
#include "services/expertwire/handshake.h"
#include "services/expertwire/link_set.h"
#include "services/expertwire/shared_pipe.h"
#include "switchyard/internal/v1/expert.grpc.pb.h"
#include "tests/support/wire_peers.h"

namespace switchyard::expertwire {
namespace {

using ::testing::HasSubstr;

class GrpcLinkOver : public ::testing::TestWithParam<bool> {
 protected:
  // Up, and over what it is going to use.
  static bool Ready(const LinkSet& links) {
    return Up(links) && links.links()[0]->stats().shares_memory == GetParam();
  }
};
INSTANTIATE_TEST_SUITE_P(Each, GrpcLinkOver, ::testing::Bool(), [](const auto& carrier) {
  return carrier.param ? std::string("SharedMemory") : std::string("Grpc");
});

TEST_P(GrpcLinkOver, CallsAndAnswersMeet) {
  EchoWorker worker;
  Server server(worker);
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address, .shared_memory = GetParam()});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Ready(links); }));
  for (uint64_t id = 1; id <= 3; ++id) ASSERT_TRUE(links.links()[0]->Send(MakeCall(id, 4)).ok());
  ASSERT_TRUE(Until(links, &events, [&] { return events.size() == 3; }));
  for (const auto& event : events) {
    const Answer& answer = std::get<Answer>(event.event);
    EXPECT_EQ(answer.payload.bytes(), 4u * kHidden * 2);
    EXPECT_EQ(static_cast<uint64_t>(answer.payload.data()[0]), answer.call_id);
  }
  EXPECT_TRUE(server.wire().Idle());
}

TEST_P(GrpcLinkOver, AnswersOfAnotherAttemptAreDroppedAndCounted) {
  EchoWorker worker;
  worker.attempt_offset = 1;
  Server server(worker);
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address, .shared_memory = GetParam()});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Ready(links); }));
  ASSERT_TRUE(links.links()[0]->Send(MakeCall(1)).ok());
  ASSERT_TRUE(Until(links, &events, [&] { return links.links()[0]->stats().stale_answers == 1; }));
  worker.attempt_offset = 0;
  ASSERT_TRUE(links.links()[0]->Send(MakeCall(2)).ok());
  ASSERT_TRUE(Until(links, &events, [&] { return !events.empty(); }));
  EXPECT_EQ(std::get<Answer>(events[0].event).call_id, 2u);
}

TEST_P(GrpcLinkOver, ACancelledCallIsDroppedAtTheWorkerAndGivesItsCreditsBack) {
  const CreditGrant tiny{.bytes = 64 << 10, .frames = 2};
  EchoWorker worker(tiny);
  worker.held = true;
  Server server(worker, tiny);
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address, .shared_memory = GetParam()});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Ready(links); }));
  for (uint64_t id = 1; id <= 10; ++id) {
    ASSERT_TRUE(links.links()[0]->Send(MakeCall(id)).ok());
    ASSERT_TRUE(Until(links, &events, [&] { return worker.waiting() == 1; })) << id;
    links.links()[0]->Cancel(id, 0);
    ASSERT_TRUE(Until(links, &events, [&] { return worker.waiting() == 0; })) << id;
  }
  EXPECT_EQ(worker.cancelled.load(), 10);
  EXPECT_TRUE(events.empty());
  worker.held = false;
  ASSERT_TRUE(links.links()[0]->Send(MakeCall(11)).ok());
  ASSERT_TRUE(Until(links, &events, [&] { return events.size() == 1; }));
}

TEST_P(GrpcLinkOver, ASilentWorkerIsSuspectAndThenGivenUp) {
  // A server that answers hello and then nothing, not even progress: a raw generic service.
  EchoWorker worker;
  worker.held = true;
  Server server(worker);
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address,
                 .suspect_after = absl::ZeroDuration(),
                 .stalled_after = absl::Nanoseconds(1),
                 .shared_memory = GetParam()});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Ready(links); }));
  ASSERT_TRUE(links.links()[0]->Send(MakeCall(1)).ok());
  ASSERT_TRUE(Until(links, &events, [&] { return !events.empty(); }));
  EXPECT_THAT(std::get<LinkDown>(events[0].event).why, HasSubstr("silent"));
  EXPECT_GE(links.links()[0]->stats().suspicions, 1u);
  ASSERT_TRUE(Until(links, &events, [&] { return Ready(links); }));  // and tried again
}

TEST_P(GrpcLinkOver, ProgressKeepsAWorkerThatComputesLongFromSuspicion) {
  EchoWorker worker;
  worker.held = true;
  Server server(worker);
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address,
                 .suspect_after = absl::Seconds(10),
                 .stalled_after = absl::Milliseconds(1500),
                 .shared_memory = GetParam()});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Ready(links); }));
  ASSERT_TRUE(links.links()[0]->Send(MakeCall(1)).ok());
  const absl::Time later = absl::Now() + absl::Seconds(3);
  ASSERT_TRUE(Until(links, &events, [&] { return absl::Now() > later; }));
  EXPECT_TRUE(events.empty());  // twice the stall time without an answer, and still up
  worker.held = false;
  ASSERT_TRUE(Until(links, &events, [&] { return !events.empty(); }));
  EXPECT_TRUE(std::holds_alternative<Answer>(events[0].event));
}

TEST(GrpcServer, UndecodableFramesEndTheStreamAndNobodyElses) {
  EchoWorker worker;
  Server server(worker);
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Up(links); }));
  const pb::Hello hello = MakeHello("raw", kNumerics, {}, false);
  RowBufferPool pool;
  const RowBuffer prefix = EncodePrefix({.body = MakeCall(1)}, absl::Now(), pool);
  for (const std::string& bytes :
       {std::string("garbage"), std::string(), std::string(prefix.as<char>(), prefix.bytes())}) {
    RawRouter raw(server.address);
    ASSERT_TRUE(raw.Write(Frame{.body = hello}));
    ASSERT_TRUE(raw.Read().ok());
    ASSERT_TRUE(raw.Write(bytes));
    EXPECT_FALSE(ReadAnswer(raw).ok());
    EXPECT_EQ(raw.Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
  EXPECT_EQ(server.wire().stats().streams_broken, 3u);
  ASSERT_TRUE(links.links()[0]->Send(MakeCall(1)).ok());
  ASSERT_TRUE(Until(links, &events, [&] { return events.size() == 1; }));
  EXPECT_TRUE(std::holds_alternative<Answer>(events[0].event));
}

TEST(GrpcServer, ACallBeforeHelloOrASecondHelloEndsTheStream) {
  EchoWorker worker;
  Server server(worker);
  RawRouter early(server.address);
  ASSERT_TRUE(early.Write(Frame{.body = pb::Drain()}));
  EXPECT_EQ(early.Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  RawRouter twice(server.address);
  const pb::Hello hello = MakeHello("raw", kNumerics, {}, false);
  ASSERT_TRUE(twice.Write(Frame{.body = hello}));
  ASSERT_TRUE(twice.Read().ok());
  ASSERT_TRUE(twice.Write(Frame{.body = hello}));
  EXPECT_EQ(twice.Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(GrpcServer, AStreamWithoutAHelloIsEnded) {
  EchoWorker worker;
  Server server(worker, {.hello_timeout = absl::Milliseconds(60)});
  RawRouter silent(server.address);
  EXPECT_FALSE(silent.Read().ok());
  EXPECT_EQ(silent.Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  const GrpcServerStats stats = server.wire().stats();
  EXPECT_EQ(stats.refused, 1u);
  EXPECT_EQ(stats.streams_broken, 0u);
  EXPECT_EQ(stats.ended_by_code[static_cast<size_t>(absl::StatusCode::kDeadlineExceeded)], 1u);
}

TEST(GrpcServer, SilentStreamsKeepNoRouterOut) {
  EchoWorker worker;
  Server server(worker, {.max_routers = 2, .hello_timeout = absl::Hours(1)});
  std::vector<std::unique_ptr<RawRouter>> silent;
  for (int i = 0; i < 40; ++i) silent.push_back(std::make_unique<RawRouter>(server.address));
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address});
  std::vector<LinkSet::Event> events;
  EXPECT_TRUE(Until(links, &events, [&] { return Up(links); }));
  EXPECT_GE(server.wire().stats().refused, 38u);
}

// A bulk lane as the router of this hello would open it, greeted.
std::unique_ptr<RawRouter> BulkLane(const std::string& address, pb::Hello hello) {
  auto out = std::make_unique<RawRouter>(address);
  hello.set_lane(1);
  EXPECT_TRUE(out->Write(Frame{.body = hello}));
  EXPECT_TRUE(out->Read().ok());
  return out;
}

TEST(GrpcServer, BulkLanesKeepNoRouterOut) {
  EchoWorker worker;
  Server server(worker, {.max_routers = 2});
  LinkSet before(RouterOptions());
  before.AddGrpc({.target = server.address});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(before, &events, [&] { return Up(before); }));
  const uint64_t generation = before.links()[0]->generation();
  std::vector<std::unique_ptr<RawRouter>> bulk;
  for (int i = 0; i < 40; ++i) {
    bulk.push_back(BulkLane(server.address, MakeHello("raw", kNumerics, {}, false)));
  }
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address});
  ASSERT_TRUE(Until(links, &events, [&] { return Up(links); }));
  EXPECT_EQ(server.wire().stats().routers, 2u);
  EXPECT_EQ(before.links()[0]->generation(), generation);  // both lanes stood through it
}

// Neither do those of a router that has a first lane; of them the newest stays.
TEST(GrpcServer, ARouterHasOneBulkLaneAFirstLane) {
  EchoWorker worker;
  Server server(worker, {.max_routers = 2});
  const pb::Hello hello = MakeHello("raw", kNumerics, {}, false);
  std::unique_ptr<RawRouter> early = BulkLane(server.address, hello);  // lone, and welcome
  RawRouter first(server.address);
  ASSERT_TRUE(first.Write(Frame{.body = hello}));
  ASSERT_TRUE(first.Read().ok());
  std::vector<std::unique_ptr<RawRouter>> bulk;
  for (int i = 0; i < 40; ++i) bulk.push_back(BulkLane(server.address, hello));
  EXPECT_EQ(early->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Up(links); }));
  std::vector<std::unique_ptr<RawRouter>> silent;
  for (int i = 0; i < 10; ++i) silent.push_back(std::make_unique<RawRouter>(server.address));
  ASSERT_TRUE(bulk.back()->Write(Frame{.body = MakeCall(1)}));
  EXPECT_TRUE(ReadAnswer(*bulk.back()).ok());
}

TEST(GrpcServer, ARefusedRouterThatStaysIsSentAway) {
  EchoWorker worker;
  Server server(worker, {.end_patience = absl::Milliseconds(60)});
  RawRouter raw(server.address);
  const NumericsClass other{"def", DType::kBF16, "bf16-fma"};
  ASSERT_TRUE(raw.Write(Frame{.body = MakeHello("raw", other, {}, false)}));
  const auto hello = raw.Read();
  ASSERT_TRUE(hello.ok());
  EXPECT_FALSE(std::get<pb::Hello>(hello->body).refused().empty());
  EXPECT_FALSE(raw.Read().ok());
  EXPECT_EQ(raw.Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(server.wire().stats().refused, 1u);
}

// Ends every stream at once, with a reason.
class Unwilling : public grpc::CallbackGenericService {
 public:
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    struct Reactor : grpc::ServerGenericBidiReactor {
      Reactor() { Finish({grpc::StatusCode::RESOURCE_EXHAUSTED, "64 routers already"}); }
      void OnDone() override { delete this; }
    };
    ++streams;
    return new Reactor;
  }
  std::atomic<int> streams = 0;
};

TEST(GrpcLink, TheServersReasonIsKeptAndRetriesChangeNothing) {
  Unwilling service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterCallbackGenericService(&service);
  const auto server = builder.BuildAndStart();
  {
    LinkSet links(RouterOptions());
    links.AddGrpc({.target = "127.0.0.1:" + std::to_string(port), .lanes = 1});
    std::vector<LinkSet::Event> events;
    const auto why = [&] { return std::string(links.links()[0]->why().message()); };
    ASSERT_TRUE(Until(links, &events, [&] { return service.streams >= 2; }));
    EXPECT_THAT(why(), HasSubstr("64 routers already"));
    const uint64_t generation = links.links()[0]->generation();
    ASSERT_TRUE(Until(links, &events, [&] { return service.streams >= 5; }));
    EXPECT_THAT(why(), HasSubstr("64 routers already"));
    EXPECT_EQ(links.links()[0]->generation(), generation);
    EXPECT_TRUE(events.empty());
  }
  server->Shutdown(std::chrono::system_clock::now());
}

// What a router says it left is not there: the stream goes on without.
TEST(GrpcServer, MemoryThatIsNotThereIsDeclined) {
  EchoWorker worker;
  Server server(worker);
  RawRouter raw(server.address);
  pb::Hello hello = MakeHello("raw", kNumerics, {}, false);
  hello.set_host(HostId());
  ASSERT_TRUE(raw.Write(Frame{.body = hello}));
  absl::StatusOr<Frame> frame = raw.Read();
  ASSERT_TRUE(frame.ok());
  EXPECT_FALSE(std::get<pb::Hello>(frame->body).mailbox().empty());
  pb::SharedMemory memory;
  memory.set_nonce(7);
  ASSERT_TRUE(raw.Write(Frame{.body = memory}));
  frame = raw.Read();
  ASSERT_TRUE(frame.ok());
  EXPECT_EQ(std::get<pb::SharedMemory>(frame->body).nonce(), 0u);
  ASSERT_TRUE(raw.Write(Frame{.body = MakeCall(1)}));
  EXPECT_TRUE(ReadAnswer(raw).ok());
}

TEST(GrpcServer, ARouterOfAnotherHostIsOfferedNoMemory) {
  EchoWorker worker;
  Server server(worker);
  for (const std::string host : {"", "another"}) {
    RawRouter raw(server.address);
    pb::Hello hello = MakeHello("raw", kNumerics, {}, false);
    hello.set_host(host);
    ASSERT_TRUE(raw.Write(Frame{.body = hello}));
    absl::StatusOr<Frame> frame = raw.Read();
    ASSERT_TRUE(frame.ok());
    EXPECT_EQ(std::get<pb::Hello>(frame->body).mailbox(), "");
  }
}

TEST(GrpcServer, OverdrawnCreditsEndTheStream) {
  const CreditGrant tiny{.bytes = 64 << 10, .frames = 2};
  EchoWorker worker(tiny);
  worker.held = true;
  Server server(worker, tiny);
  RawRouter raw(server.address);
  ASSERT_TRUE(raw.Write(Frame{.body = MakeHello("raw", kNumerics, {}, false)}));
  ASSERT_TRUE(raw.Read().ok());
  for (uint64_t id = 1; id <= 3; ++id) ASSERT_TRUE(raw.Write(Frame{.body = MakeCall(id)}));
  EXPECT_FALSE(ReadAnswer(raw).ok());
  EXPECT_EQ(raw.Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(GrpcServer, AMalformedCallIsAnsweredBadAndTheStreamGoesOn) {
  EchoWorker worker;
  Server server(worker);
  RawRouter raw(server.address);
  ASSERT_TRUE(raw.Write(Frame{.body = MakeHello("raw", kNumerics, {}, false)}));
  ASSERT_TRUE(raw.Read().ok());
  Call bad = MakeCall(1);
  bad.row_index[0] = 9;
  ASSERT_TRUE(raw.Write(Frame{.body = bad}));
  auto answer = ReadAnswer(raw);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(answer->status, ::testing::ElementsAre(pb::BAD));
  EXPECT_THAT(answer->error, HasSubstr("row 9 of 1"));
  ASSERT_TRUE(raw.Write(Frame{.body = MakeCall(2)}));
  answer = ReadAnswer(raw);
  ASSERT_TRUE(answer.ok());
  EXPECT_THAT(answer->status, ::testing::ElementsAre(pb::OK));
}

// The router stops reading with tiny buffers both ways: its answers pile up to its credits and no
// further, others are served, and it goes on where it left off once it reads again.
TEST(GrpcServer, ARouterThatStopsReadingHurtsOnlyItself) {
  const CreditGrant grant{.bytes = 2 << 20, .frames = 8};
  EchoWorker worker(grant);
  Server server(worker, grant, 64 << 10);
  RawRouter lazy(server.address, 64 << 10);
  ASSERT_TRUE(lazy.Write(Frame{.body = MakeHello("lazy", kNumerics, {8 << 20, 64}, false)}));
  ASSERT_TRUE(lazy.Read().ok());
  for (uint64_t id = 1; id <= 8; ++id) {
    ASSERT_TRUE(lazy.Write(Frame{.body = MakeCall(id, 200)}));  // 200 KiB each way
  }
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Up(links); }));
  for (uint64_t id = 1; id <= 20; ++id) {
    ASSERT_TRUE(links.links()[0]->Send(MakeCall(id, 100)).ok());
    ASSERT_TRUE(Until(links, &events, [&] { return events.size() == id; })) << id;
  }
  for (uint64_t id = 1; id <= 8; ++id) {
    const auto answer = ReadAnswer(lazy);
    ASSERT_TRUE(answer.ok()) << id;
    EXPECT_EQ(answer->call_id, id);
    EXPECT_EQ(answer->sums, 200u);
  }
}

// With one lane the small call would wait behind the third large one, and that for credits.
TEST_P(GrpcLinkOver, BulkDelaysNoSmallCall) {
  const CreditGrant grant{.bytes = 8 << 20, .frames = 2};
  EchoWorker worker(grant);
  worker.held = true;
  Server server(worker, grant);
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address, .shared_memory = GetParam()});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Ready(links); }));
  EXPECT_EQ(server.wire().stats().routers, 1u);
  for (uint64_t id = 1; id <= 4; ++id) ASSERT_TRUE(links.links()[0]->Send(MakeCall(id, 300)).ok());
  ASSERT_TRUE(Until(links, &events, [&] { return worker.waiting() == 2; }));
  ASSERT_TRUE(links.links()[0]->Send(MakeCall(5)).ok());
  ASSERT_TRUE(Until(links, &events, [&] { return worker.waiting() == 3; }));
  worker.held = false;
  ASSERT_TRUE(Until(links, &events, [&] { return events.size() == 5; }));
}

// Both ends want to write much more than the buffers and credits between them hold.
TEST_P(GrpcLinkOver, TinyBuffersBothWaysDoNotDeadlock) {
  const CreditGrant grant{.bytes = 1 << 20, .frames = 4};
  EchoWorker worker(grant);
  Server server(worker, grant, 64 << 10);
  LinkSet links(RouterOptions(grant));
  links.AddGrpc(
      {.target = server.address, .shared_memory = GetParam(), .socket_buffer_bytes = 64 << 10});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Ready(links); }));
  for (uint64_t id = 1; id <= 60; ++id) ASSERT_TRUE(links.links()[0]->Send(MakeCall(id, 250)).ok());
  ASSERT_TRUE(Until(links, &events, [&] { return events.size() == 60; })) << events.size();
  EXPECT_LE(worker.most_waiting(), 4u);
  EXPECT_EQ(server.wire().stats().streams_broken, 0u);
}

// Frames larger than a ring, while both ends sleep between them.
TEST_P(GrpcLinkOver, LargeFramesComeThroughWhole) {
  const CreditGrant grant{.bytes = 64 << 20, .frames = 16};
  EchoWorker worker(grant);
  Server server(worker, {.grant = grant, .busy_poll = absl::ZeroDuration()});
  LinkSetOptions options = RouterOptions(grant);
  options.yield_for = absl::ZeroDuration();
  LinkSet links(options);
  links.AddGrpc({.target = server.address, .shared_memory = GetParam()});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Ready(links); }));
  constexpr uint32_t kRows = 3 * SharedPipe::kRingBytes / (kHidden * 2);
  for (uint64_t id = 1; id <= 4; ++id) {
    events.clear();
    ASSERT_TRUE(links.links()[0]->Send(MakeCall(id, kRows)).ok());
    ASSERT_TRUE(Until(links, &events, [&] { return !events.empty(); }));
    const Answer& answer = std::get<Answer>(events[0].event);
    ASSERT_EQ(answer.payload.bytes(), size_t{kRows} * kHidden * 2);
    EXPECT_TRUE(std::all_of(answer.payload.data(), answer.payload.data() + answer.payload.bytes(),
                            [&](std::byte b) { return b == static_cast<std::byte>(id); }));
  }
}

TEST_P(GrpcLinkOver, TheWorkersEndIsNoticedAndItsReturnToo) {
  EchoWorker worker;
  worker.held = true;
  auto server = std::make_unique<Server>(worker);
  const std::string address = server->address;
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = address, .shared_memory = GetParam()});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Ready(links); }));
  ASSERT_TRUE(links.links()[0]->Send(MakeCall(1)).ok());
  server.reset();
  ASSERT_TRUE(Until(links, &events, [&] { return !events.empty(); }));
  EXPECT_TRUE(std::holds_alternative<LinkDown>(events[0].event));
  EXPECT_FALSE(links.links()[0]->stats().shares_memory);
}

TEST_P(GrpcLinkOver, APartThatCanNeverFitIsRefusedAtOnce) {
  const CreditGrant grant{.bytes = 64 << 10, .frames = 4};
  EchoWorker worker(grant);
  Server server(worker, grant);
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address, .shared_memory = GetParam()});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Ready(links); }));
  EXPECT_TRUE(absl::IsResourceExhausted(links.links()[0]->Send(MakeCall(1, 100))));
}

TEST(GrpcLink, AnAddressWithoutAWorkerIsTriedAgainUntilThereIsOne) {
  LinkSet links(RouterOptions());
  const std::string socket = "unix:/tmp/sy-wire-late-" + std::to_string(::getpid());
  links.AddGrpc({.target = socket});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] {
    return std::string(links.links()[0]->why().message()).find("not connected yet") ==
           std::string::npos;
  }));
  EXPECT_THAT(std::string(links.links()[0]->why().message()), HasSubstr(socket));
  EXPECT_TRUE(absl::IsUnavailable(links.links()[0]->Send(MakeCall(1))));
  EchoWorker worker;
  GrpcServer wire(worker, {});
  grpc::ServerBuilder builder;
  builder.AddListeningPort(socket, grpc::InsecureServerCredentials());
  wire.Register(builder);
  auto server = builder.BuildAndStart();
  wire.Start();
  EXPECT_TRUE(Until(links, &events, [&] { return Up(links); }));
  server->Shutdown(std::chrono::system_clock::now());
  wire.Stop();
}

TEST(GrpcServer, DescribeSaysWhoItIs) {
  EchoWorker worker;
  Server server(worker);
  auto stub = pb::ExpertWorker::NewStub(
      grpc::CreateChannel(server.address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  pb::DescribeResponse response;
  ASSERT_TRUE(stub->Describe(&context, {}, &response).ok());
  EXPECT_EQ(response.hello().peer_id(), "echo");
  EXPECT_EQ(response.hello().arithmetic(), "bf16-fma");
}

}  // namespace
}  // namespace switchyard::expertwire
