// A router's links as workers announce themselves in a real etcd.
#include "router/worker_links.h"

#include <gtest/gtest.h>

#include <functional>

#include "tests/support/etcd_process.h"
#include "tests/support/wire_peers.h"

namespace switchyard::router {
namespace {

using discovery::Announcement;
using discovery::EtcdClient;
using expertwire::LinkSet;
using expertwire::LinkState;

bool Eventually(const std::function<bool()>& holds) {
  const absl::Time bound = absl::Now() + absl::Seconds(60);
  while (!holds()) {
    if (absl::Now() > bound) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

class AnnouncedWorkersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const absl::Status started = etcd_.Start();
    ASSERT_TRUE(started.ok()) << started;
    auto workers = WorkerLinks::Create({.etcd = Client()}, links_);
    ASSERT_TRUE(workers.ok()) << workers.status();
    workers_ = *std::move(workers);
  }
  std::shared_ptr<EtcdClient> Client() { return *EtcdClient::Create({.urls = {etcd_.url()}}); }
  std::unique_ptr<Announcement> Announce(const std::string& address) {
    return std::make_unique<Announcement>(Client(), discovery::Member{address, {}},
                                          absl::Seconds(1));
  }
  // Of the first link; kGone also if there is none.
  LinkState State() {
    workers_->Look();
    return links_.links().empty() ? LinkState::kGone : links_.links()[0]->state();
  }

  EtcdProcess etcd_;
  LinkSet links_{expertwire::RouterOptions()};
  std::unique_ptr<WorkerLinks> workers_;
};

TEST_F(AnnouncedWorkersTest, AnAnnouncedWorkerIsLinkedAndOneThatIsGoneIsLeft) {
  expertwire::EchoWorker echo;
  auto server = std::make_unique<expertwire::Server>(echo);
  auto announcement = Announce(server->address);
  ASSERT_TRUE(Eventually([&] { return State() == LinkState::kUp; }));
  EXPECT_EQ(links_.links()[0]->name(), server->address);
  server.reset();
  ASSERT_TRUE(Eventually([&] { return State() == LinkState::kConnecting; }));
  announcement.reset();
  ASSERT_TRUE(Eventually([&] { return State() == LinkState::kGone; }));
}

TEST_F(AnnouncedWorkersTest, AWorkerThatServesIsKeptThoughItsLeaseIsGone) {
  expertwire::EchoWorker echo;
  expertwire::Server server(echo);
  auto announcement = Announce(server.address);
  ASSERT_TRUE(Eventually([&] { return State() == LinkState::kUp; }));
  announcement.reset();
  // The news of this one comes behind that.
  const auto other = Announce("127.0.0.1:9");
  ASSERT_TRUE(Eventually([&] { return links_.links().size() == 2; }));
  EXPECT_EQ(State(), LinkState::kUp);
}

TEST_F(AnnouncedWorkersTest, AWorkerThatDrainsIsKeptUntilItEnds) {
  expertwire::EchoWorker echo;
  auto server = std::make_unique<expertwire::Server>(echo);
  auto announcement = Announce(server->address);
  ASSERT_TRUE(Eventually([&] { return State() == LinkState::kUp; }));
  server->wire().BeginDrain();
  ASSERT_TRUE(Eventually([&] { return State() == LinkState::kDraining; }));
  announcement.reset();
  // The news of this one comes behind that.
  const auto other = Announce("127.0.0.1:9");
  ASSERT_TRUE(Eventually([&] { return links_.links().size() == 2; }));
  EXPECT_EQ(State(), LinkState::kDraining);
  EXPECT_TRUE(links_.links()[0]->Send(expertwire::MakeCall(1)).ok()) << "it takes no calls";
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(expertwire::Until(links_, &events, [&] { return !events.empty(); }));
  EXPECT_TRUE(std::holds_alternative<expertwire::Answer>(events[0].event));
  server.reset();
  EXPECT_TRUE(Eventually([&] { return State() == LinkState::kGone; }));
}

TEST_F(AnnouncedWorkersTest, LosingEtcdChangesNothing) {
  expertwire::EchoWorker echo;
  expertwire::Server server(echo);
  const auto announcement = Announce(server.address);
  ASSERT_TRUE(Eventually([&] { return State() == LinkState::kUp; }));
  etcd_.Stop();
  ASSERT_TRUE(Eventually([&] { return !announcement->registered(); }));
  EXPECT_EQ(State(), LinkState::kUp);
  ASSERT_TRUE(etcd_.Start().ok());
  const auto other = Announce("127.0.0.1:9");
  ASSERT_TRUE(Eventually([&] { return links_.links().size() == 2; }));
  EXPECT_EQ(State(), LinkState::kUp);
}

}  // namespace
}  // namespace switchyard::router
