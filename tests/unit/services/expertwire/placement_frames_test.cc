// What routers and workers say to each other about placements, over real streams.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/wire_peers.h"

namespace switchyard::expertwire {
namespace {

using ::testing::ElementsAre;

class PlacementFrames : public ::testing::TestWithParam<bool> {
 protected:
  // Up, and over what it is going to use.
  static bool Ready(const LinkSet& links) {
    return Up(links) && links.links()[0]->stats().shares_memory == GetParam();
  }
};
INSTANTIATE_TEST_SUITE_P(Each, PlacementFrames, ::testing::Bool(), [](const auto& carrier) {
  return carrier.param ? std::string("SharedMemory") : std::string("Grpc");
});

TEST_P(PlacementFrames, PlacementsAreSpokenOfBothWays) {
  EchoWorker worker;
  Server server(worker);
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address, .shared_memory = GetParam()});
  ExpertLink& link = *links.links()[0];
  pb::Assign assign;
  assign.set_epoch(6);
  link.Assign(assign);  // not up yet: lost
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Ready(links); }));
  EXPECT_EQ(link.peer()->revision(), kWireRevision);
  assign.set_epoch(7);
  link.Assign(assign);
  assign.set_also(true);
  link.Assign(assign);
  link.AckEpoch(7);
  pb::Prefetch prefetch;
  prefetch.add_experts(3);
  link.Prefetch(prefetch);
  ASSERT_TRUE(Until(links, &events, [&] { return worker.said().size() == 5; }));
  EXPECT_THAT(worker.said(),
              ElementsAre("router", "assign 7", "assign 7 also", "ack 7", "prefetch 1"));

  for (uint64_t epoch : {7u, 8u}) {
    const uint64_t before = link.generation();
    worker.epoch = epoch;
    ASSERT_TRUE(Until(links, &events, [&] { return link.generation() != before; })) << epoch;
    const auto peer = link.peer();
    EXPECT_EQ(peer->peer_id(), "echo");  // the rest of the hello stays
    EXPECT_EQ(peer->epoch(), epoch);
    EXPECT_EQ(peer->assigned_epoch(), epoch + 1);
    EXPECT_EQ(peer->free_bytes(), 10 * epoch);
    EXPECT_EQ(peer->held_bytes(), 20 * epoch);
    ASSERT_EQ(peer->held_size(), 1);
    EXPECT_EQ(peer->held(0).layer(), static_cast<int32_t>(epoch));
    EXPECT_EQ(peer->failed(0).why(), "gone");
  }
  EXPECT_TRUE(Up(links));
  EXPECT_TRUE(events.empty());
}

TEST(GrpcLink, AWorkerOfRevisionZeroIsToldNothingOfPlacements) {
  EchoWorker worker;
  worker.revision = 0;
  Server server(worker);
  LinkSet links(RouterOptions());
  links.AddGrpc({.target = server.address});
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(Until(links, &events, [&] { return Up(links); }));
  links.links()[0]->Assign({});
  links.links()[0]->AckEpoch(1);
  links.links()[0]->Prefetch({});
  ASSERT_TRUE(links.links()[0]->Send(MakeCall(1)).ok());  // comes after what would have been said
  ASSERT_TRUE(Until(links, &events, [&] { return events.size() == 1; }));
  EXPECT_THAT(worker.said(), ElementsAre("router"));
}

// It would end the stream at a frame that it does not know.
TEST(GrpcServer, ARouterOfRevisionZeroHearsNothingOfPlacements) {
  EchoWorker worker;
  worker.held = true;
  Server server(worker);
  pb::Hello hello = MakeHello("raw", kNumerics, {}, false);
  hello.set_revision(0);
  RawRouter raw(server.address);
  ASSERT_TRUE(raw.Write(Frame{.body = hello}));
  ASSERT_TRUE(raw.Read().ok());
  worker.epoch = 5;
  ASSERT_TRUE(raw.Write(Frame{.body = MakeCall(1)}));
  for (int i = 0; i < 3; ++i) {  // frames of two beats
    const absl::StatusOr<Frame> frame = raw.Read();
    ASSERT_TRUE(frame.ok()) << frame.status();
    EXPECT_FALSE(std::holds_alternative<pb::Holds>(frame->body));
  }
}

TEST(GrpcServer, AFrameOfAnUnknownKindIsPassedOver) {
  EchoWorker worker;
  Server server(worker);
  RawRouter raw(server.address);
  ASSERT_TRUE(raw.Write(Frame{.body = MakeHello("raw", kNumerics, {}, false)}));
  ASSERT_TRUE(raw.Read().ok());
  ASSERT_TRUE(raw.Write(Frame{}));
  ASSERT_TRUE(raw.Write(Frame{.body = MakeCall(1)}));
  EXPECT_TRUE(ReadAnswer(raw).ok());
  EXPECT_EQ(server.wire().stats().streams_broken, 0u);
}

}  // namespace
}  // namespace switchyard::expertwire
