#include "router/worker_links.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "services/base/status.h"
#include "tests/support/wire_peers.h"

namespace switchyard::router {
namespace {

using expertwire::LinkSet;
using expertwire::LinkState;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Hosts = std::vector<std::string>;

// The names of a name server, changed by the test while the router asks.
class Names {
 public:
  void Set(const std::string& name, Hosts hosts) {
    absl::MutexLock lock(&mutex_);
    names_[name] = std::move(hosts);
  }
  discovery::Resolver resolver() {
    return [this](const std::string& name) -> absl::StatusOr<Hosts> {
      absl::MutexLock lock(&mutex_);
      const auto it = names_.find(name);
      if (it == names_.end()) return NotFound("{}: no such name", name);
      return it->second;
    };
  }

 private:
  absl::Mutex mutex_;
  std::map<std::string, Hosts> names_;
};

Hosts Targets(const LinkSet& links) {
  Hosts out;
  for (const auto& link : links.links()) {
    if (link->state() != LinkState::kGone) out.push_back(link->name());
  }
  return out;
}

bool Eventually(const std::function<bool()>& holds) {
  const absl::Time bound = absl::Now() + absl::Seconds(30);
  while (!holds()) {
    if (absl::Now() > bound) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

TEST(WorkerLinks, AddressesAsGivenAreLinkedInTheirOrderAtOnce) {
  Names names;
  LinkSet links(expertwire::RouterOptions());
  const auto workers =
      WorkerLinks::Create({.addresses = {"127.0.0.1:9", "unix:/nowhere/w.sock", "127.0.0.1:7"},
                           .resolver = names.resolver()},
                          links);
  ASSERT_TRUE(workers.ok()) << workers.status();
  EXPECT_THAT(Targets(links), ElementsAre("127.0.0.1:9", "unix:/nowhere/w.sock", "127.0.0.1:7"));
}

TEST(WorkerLinks, LinksFollowAName) {
  expertwire::EchoWorker echo;
  expertwire::Server server(echo);
  const std::string port = server.address.substr(server.address.rfind(':') + 1);
  Names names;
  LinkSet links(expertwire::RouterOptions());
  const auto workers = WorkerLinks::Create({.addresses = {"dns:experts:" + port},
                                            .dns_refresh = absl::Milliseconds(1),
                                            .resolver = names.resolver()},
                                           links);
  ASSERT_TRUE(workers.ok()) << workers.status();
  EXPECT_THAT(Targets(links), IsEmpty()) << "the name server knows none yet";
  names.Set("experts", {"127.0.0.1"});
  ASSERT_TRUE(Eventually(
      [&] { return links.links().size() == 1 && links.links()[0]->state() == LinkState::kUp; }));
  names.Set("experts", {"127.0.0.1", "127.0.0.2"});
  ASSERT_TRUE(Eventually([&] { return links.links().size() == 2; }));
  EXPECT_EQ(links.links()[1]->name(), "127.0.0.2:" + port);
  names.Set("experts", {"127.0.0.2"});
  ASSERT_TRUE(Eventually([&] { return links.links()[0]->state() == LinkState::kGone; }));
  EXPECT_THAT(Targets(links), ElementsAre("127.0.0.2:" + port));
}

TEST(WorkerLinks, AWorkerThatDrainsIsKeptUntilItEndsThoughItsNameHasLostIt) {
  expertwire::EchoWorker echo;
  auto server = std::make_unique<expertwire::Server>(echo);
  const std::string port = server->address.substr(server->address.rfind(':') + 1);
  Names names;
  names.Set("experts", {"127.0.0.1"});
  LinkSet links(expertwire::RouterOptions());
  const auto workers = WorkerLinks::Create({.addresses = {"dns:experts:" + port},
                                            .dns_refresh = absl::Milliseconds(1),
                                            .resolver = names.resolver()},
                                           links);
  ASSERT_TRUE(workers.ok()) << workers.status();
  const auto comes_to = [&](LinkState state) {
    return Eventually([&] {
      (*workers)->Look();
      return !links.links().empty() && links.links()[0]->state() == state;
    });
  };
  ASSERT_TRUE(comes_to(LinkState::kUp));
  server->wire().BeginDrain();
  ASSERT_TRUE(comes_to(LinkState::kDraining));
  names.Set("experts", {"127.0.0.2"});
  ASSERT_TRUE(Eventually([&] { return links.links().size() == 2; }));
  (*workers)->Look();
  EXPECT_TRUE(links.links()[0]->Send(expertwire::MakeCall(1)).ok()) << "it takes no calls";
  std::vector<LinkSet::Event> events;
  ASSERT_TRUE(expertwire::Until(links, &events, [&] { return !events.empty(); }));
  EXPECT_TRUE(std::holds_alternative<expertwire::Answer>(events[0].event));
  server.reset();
  EXPECT_TRUE(comes_to(LinkState::kGone));
}

TEST(WorkerLinks, ATlsFileThatCannotBeReadIsToldAtOnce) {
  LinkSet links(expertwire::RouterOptions());
  const auto workers =
      WorkerLinks::Create({.addresses = {"127.0.0.1:9"}, .tls = {.ca = "/nowhere/ca.pem"}}, links);
  EXPECT_FALSE(workers.ok());
}

}  // namespace
}  // namespace switchyard::router
