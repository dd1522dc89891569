// Links that come and go while others serve.
#include "services/expertwire/link_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "services/base/text.h"
#include "tests/support/wire_peers.h"

namespace switchyard::expertwire {
namespace {

using Events = std::vector<LinkSet::Event>;

// Sends a call over a link and waits for the answer.
bool Echoes(LinkSet& links, size_t link, uint64_t id) {
  Events events;
  if (!Until(links, &events, [&] { return links.links()[link]->state() == LinkState::kUp; }) ||
      !links.links()[link]->Send(MakeCall(id)).ok()) {
    return false;
  }
  return Until(links, &events, [&] {
    return std::any_of(events.begin(), events.end(), [&](const LinkSet::Event& event) {
      const auto* answer = std::get_if<Answer>(&event.event);
      return event.link == static_cast<int>(link) && answer != nullptr && answer->call_id == id;
    });
  });
}

bool Gone(LinkSet& links, size_t link) {
  Events events;
  return Until(links, &events, [&] { return links.links()[link]->state() == LinkState::kGone; });
}

TEST(LinkSet, AnAddedLinkServesBesideTheOthersAtALaterIndex) {
  EchoWorker a, b;
  Server first(a), second(b);
  LinkSet links(RouterOptions());
  ASSERT_TRUE(links.AddGrpc({.target = first.address}));
  EXPECT_TRUE(Echoes(links, 0, 1));
  ASSERT_TRUE(links.AddGrpc({.target = second.address}));
  ASSERT_EQ(links.links().size(), 2u);
  EXPECT_EQ(links.links()[1]->name(), second.address);
  EXPECT_TRUE(Echoes(links, 1, 2));
  EXPECT_TRUE(Echoes(links, 0, 3));
}

TEST(LinkSet, ARemovedLinkTakesNoCallsButFinishesItsOpenOnes) {
  EchoWorker worker;
  Server server(worker);
  LinkSet links(RouterOptions());
  ASSERT_TRUE(links.AddGrpc({.target = server.address}));
  ASSERT_TRUE(Echoes(links, 0, 1));
  const uint64_t generation = links.links()[0]->generation();
  worker.held = true;
  ASSERT_TRUE(links.links()[0]->Send(MakeCall(2)).ok());
  ASSERT_TRUE(links.Remove(server.address));
  EXPECT_FALSE(links.Remove(server.address)) << "it is leaving already";
  EXPECT_EQ(links.links()[0]->state(), LinkState::kDraining);
  EXPECT_GT(links.links()[0]->generation(), generation);
  EXPECT_TRUE(absl::IsUnavailable(links.links()[0]->Send(MakeCall(3))));
  Events events;
  ASSERT_TRUE(Until(links, &events, [&] { return worker.waiting() == 1; }));
  worker.held = false;
  ASSERT_TRUE(Until(links, &events, [&] { return !events.empty(); }));
  ASSERT_TRUE(std::holds_alternative<Answer>(events[0].event));
  EXPECT_EQ(std::get<Answer>(events[0].event).call_id, 2u);
  EXPECT_TRUE(Gone(links, 0));
  EXPECT_EQ(links.links().size(), 1u) << "indices are stable";
  EXPECT_EQ(links.links()[0]->name(), server.address);
  EXPECT_TRUE(absl::IsUnavailable(links.links()[0]->Send(MakeCall(4))));
}

TEST(LinkSet, OpenCallsOfARemovedLinkAreLostOnceItsPatienceIsOver) {
  EchoWorker worker;
  worker.held = true;
  Server server(worker);
  LinkSet links(RouterOptions());
  ASSERT_TRUE(links.AddGrpc({.target = server.address}));
  Events events;
  ASSERT_TRUE(Until(links, &events, [&] { return links.links()[0]->state() == LinkState::kUp; }));
  ASSERT_TRUE(links.links()[0]->Send(MakeCall(1)).ok());
  const uint64_t sent = links.links()[0]->generation();
  ASSERT_TRUE(links.Remove(server.address, absl::Milliseconds(20)));
  ASSERT_TRUE(Until(links, &events, [&] { return !events.empty(); }));
  ASSERT_TRUE(std::holds_alternative<LinkDown>(events[0].event));
  EXPECT_EQ(events[0].link, 0);
  EXPECT_GE(std::get<LinkDown>(events[0].event).generation, sent) << "it concerns that call";
  EXPECT_TRUE(Gone(links, 0));
}

TEST(LinkSet, AnotherLinkMovesIntoThePlaceOfOneThatIsGone) {
  EchoWorker a, b;
  Server first(a), second(b);
  LinkSet links(RouterOptions());
  ASSERT_TRUE(links.AddGrpc({.target = first.address}));
  ASSERT_TRUE(Echoes(links, 0, 1));
  ASSERT_TRUE(links.Remove(first.address));
  Events events;
  // kGone is told before the last stream has ended: only then is there room.
  ASSERT_TRUE(Until(links, &events, [&] {
    return links.links()[0]->state() == LinkState::kGone && links.links()[0]->peer() == nullptr;
  }));
  const uint64_t generation = links.links()[0]->generation();
  ASSERT_TRUE(links.AddGrpc({.target = second.address}));
  ASSERT_EQ(links.links().size(), 1u);
  EXPECT_EQ(links.links()[0]->name(), second.address);
  EXPECT_GT(links.links()[0]->generation(), generation);
  EXPECT_TRUE(Echoes(links, 0, 2));
}

TEST(LinkSet, OneThatIsLeavingStaysIfItIsAddedAgain) {
  EchoWorker worker;
  Server server(worker);
  LinkSet links(RouterOptions());
  ASSERT_TRUE(links.AddGrpc({.target = server.address}));
  ASSERT_TRUE(Echoes(links, 0, 1));
  worker.held = true;
  ASSERT_TRUE(links.links()[0]->Send(MakeCall(2)).ok());
  ASSERT_TRUE(links.Remove(server.address));
  ASSERT_TRUE(links.AddGrpc({.target = server.address}));
  EXPECT_EQ(links.links()[0]->state(), LinkState::kUp);
  EXPECT_EQ(links.links()[0]->stats().connects, 2u) << "the same streams, one a lane";
  EXPECT_EQ(links.links().size(), 1u);
  worker.held = false;
  EXPECT_TRUE(Echoes(links, 0, 3));
}

TEST(LinkSet, ThereIsRoomForSoManyLinksAndNoMore) {
  EchoWorker worker;  // outlives its links
  LinkSet links(RouterOptions());
  for (size_t i = 0; i < LinkSet::kLinksMax; ++i) links.AddLocal("local", worker);
  EXPECT_FALSE(links.AddGrpc({.target = "127.0.0.1:1"}));
}

// Other threads add, remove and look while the engine's thread sends: for ThreadSanitizer.
TEST(LinkSet, LinksComeAndGoUnderLoad) {
  EchoWorker steady_worker, other_worker;
  Server steady(steady_worker), other(other_worker);
  LinkSet links(RouterOptions());
  ASSERT_TRUE(links.AddGrpc({.target = steady.address}));
  std::atomic<bool> done = false;
  std::thread looks([&] {
    uint64_t seen = 0;
    while (!done) {
      for (const auto& link : links.links()) {
        seen += link->generation() + link->name().size() + link->stats().connects +
                (link->peer() != nullptr) + link->why().ok();
      }
    }
    EXPECT_GT(seen, 0u);
  });
  std::thread changes([&] {
    for (int i = 0; i < 20; ++i) {
      EXPECT_TRUE(links.AddGrpc({.target = other.address}));
      const int before = other_worker.answered;
      while (other_worker.answered == before) std::this_thread::yield();
      EXPECT_TRUE(links.Remove(other.address));
    }
    done = true;
  });
  uint64_t id = 0;
  std::vector<uint64_t> sent;
  size_t settled = 0;
  Events events;
  while (!done) {
    for (const auto& link : links.links()) {
      if (link->state() == LinkState::kUp && link->Send(MakeCall(++id)).ok()) sent.push_back(id);
    }
    links.Poll(&events);
    for (const LinkSet::Event& event : events) settled += event.link >= 0;
    events.clear();
    links.Wait(absl::Now() + absl::Milliseconds(1));
  }
  looks.join();
  changes.join();
  EXPECT_GT(settled, 20u);
  EXPECT_LE(links.links().size(), 21u);
  EXPECT_TRUE(Echoes(links, 0, ++id));
}

}  // namespace
}  // namespace switchyard::expertwire
