// Membership, election and documents against a real etcd, which also dies and comes back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <optional>

#include "services/base/status.h"
#include "services/discovery/document_watch.h"
#include "services/discovery/election.h"
#include "services/discovery/membership.h"
#include "tests/support/etcd_process.h"

namespace switchyard::discovery {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Only for a test that hangs.
constexpr absl::Duration kBound = absl::Seconds(60);
constexpr absl::Duration kTtl = absl::Seconds(1);

// The last of what a callback was called with.
template <typename T>
class Last {
 public:
  void Set(T value) {
    absl::MutexLock lock(&mutex_);
    value_ = std::move(value);
    ++count_;
  }
  // Waits until it is as `wanted` says.
  [[nodiscard]] bool Await(std::function<bool(const T&)> wanted) {
    absl::MutexLock lock(&mutex_);
    const auto is = [&] { return value_.has_value() && wanted(*value_); };
    return mutex_.AwaitWithTimeout(absl::Condition(&is), kBound);
  }
  [[nodiscard]] bool Await(const T& wanted) {
    return Await([&](const T& value) { return value == wanted; });
  }
  T Get() {
    absl::MutexLock lock(&mutex_);
    return value_.value_or(T());
  }
  int count() {
    absl::MutexLock lock(&mutex_);
    return count_;
  }

 private:
  absl::Mutex mutex_;
  std::optional<T> value_;
  int count_ = 0;
};

using Addresses = std::vector<std::string>;

bool Eventually(const std::function<bool()>& holds) {
  const absl::Time bound = absl::Now() + kBound;
  while (!holds()) {
    if (absl::Now() > bound) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

class DiscoveryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const absl::Status started = etcd_.Start();
    ASSERT_TRUE(started.ok()) << started;
    client_ = Client();
  }
  std::shared_ptr<EtcdClient> Client() {
    return *EtcdClient::Create({.urls = {etcd_.url()}, .timeout = absl::Seconds(1)});
  }
  std::unique_ptr<MemberWatch> WatchMembers(Last<Addresses>* last) {
    return std::make_unique<MemberWatch>(Client(), [last](const std::vector<Member>& members) {
      Addresses addresses;
      for (const Member& member : members) addresses.push_back(member.address);
      last->Set(std::move(addresses));
    });
  }
  std::unique_ptr<DocumentWatch> WatchDocument(Last<std::string>* last) {
    return std::make_unique<DocumentWatch>(Client(), "placement", [last](const std::string& text) {
      if (text == "bad") return InvalidArgument("it is bad");
      last->Set(text);
      return absl::OkStatus();
    });
  }
  std::unique_ptr<Election> Candidate(const std::string& name) {
    return std::make_unique<Election>(Client(), ElectionOptions{.candidate = name, .ttl = kTtl});
  }
  etcd::KeyValue Get(const std::string& name) {
    etcd::RangeRequest request;
    request.set_key(client_->Key(name));
    const auto response = client_->Range(request, stopper_);
    return response.ok() && response->kvs_size() > 0 ? response->kvs(0) : etcd::KeyValue();
  }
  void Put(const std::string& name, const std::string& value, int64_t lease = 0) {
    etcd::PutRequest request;
    request.set_key(client_->Key(name));
    request.set_value(value);
    request.set_lease(lease);
    const auto put = client_->Put(request, stopper_);
    ASSERT_TRUE(put.ok()) << put.status();
  }
  void Revoke(int64_t lease) {
    etcd::LeaseRevokeRequest request;
    request.set_id(lease);
    ASSERT_TRUE(client_->Revoke(request, stopper_).ok());
  }

  EtcdProcess etcd_;
  std::shared_ptr<EtcdClient> client_;
  Stopper stopper_;
};

TEST_F(DiscoveryTest, MembersComeAndGo) {
  Last<Addresses> seen;
  const auto watch = WatchMembers(&seen);
  ASSERT_TRUE(seen.Await(Addresses{}));
  const Announcement first(Client(), {"10.0.0.1:1", {{"id", "a"}}}, kTtl);
  ASSERT_TRUE(seen.Await(Addresses{"10.0.0.1:1"}));
  {
    const Announcement second(Client(), {"10.0.0.2:1", {}}, absl::Hours(1));
    ASSERT_TRUE(seen.Await(Addresses{"10.0.0.1:1", "10.0.0.2:1"}));
  }
  ASSERT_TRUE(seen.Await(Addresses{"10.0.0.1:1"})) << "at once, not when its lease runs out";
  EXPECT_TRUE(first.registered());
}

TEST_F(DiscoveryTest, AMemberThatDiesIsGoneWhenItsLeaseRunsOut) {
  Last<Addresses> seen;
  const auto watch = WatchMembers(&seen);
  // As a process would leave it that is killed.
  etcd::LeaseGrantRequest grant;
  grant.set_ttl(1);
  const auto lease = client_->Grant(grant, stopper_);
  ASSERT_TRUE(lease.ok()) << lease.status();
  Put("workers/dead", ToJson({"10.0.0.3:1", {}}), lease->id());
  const Announcement living(Client(), {"10.0.0.1:1", {}}, kTtl);
  ASSERT_TRUE(seen.Await(Addresses{"10.0.0.1:1", "10.0.0.3:1"}));
  ASSERT_TRUE(seen.Await(Addresses{"10.0.0.1:1"}));
}

TEST_F(DiscoveryTest, AMemberThatLosesItsLeaseRegistersAgain) {
  Last<Addresses> seen;
  const auto watch = WatchMembers(&seen);
  const Announcement member(Client(), {"10.0.0.1:1", {}}, kTtl);
  ASSERT_TRUE(seen.Await(Addresses{"10.0.0.1:1"}));
  Revoke(Get("workers/10.0.0.1:1").lease());
  ASSERT_TRUE(seen.Await(Addresses{}));
  ASSERT_TRUE(seen.Await(Addresses{"10.0.0.1:1"}));
}

TEST_F(DiscoveryTest, WhatIsNoMemberIsPassedOver) {
  Put("workers/junk", "{");
  Put("workers/nowhere", R"({"address": "0.0.0.0:1"})");
  Put("workers/good", R"({"address": "10.0.0.1:1"})");
  Last<Addresses> seen;
  const auto watch = WatchMembers(&seen);
  ASSERT_TRUE(seen.Await(Addresses{"10.0.0.1:1"}));
}

TEST_F(DiscoveryTest, ADocumentIsFollowedAndTheLastGoodOneStays) {
  Last<std::string> seen;
  const auto watch = WatchDocument(&seen);
  Put("placement", "one");
  ASSERT_TRUE(seen.Await("one"));
  Put("placement", "bad");
  ASSERT_TRUE(Eventually([&] { return watch->health().refused == 1; }));
  EXPECT_EQ(watch->health().status.message(), "it is bad");
  Put("placement", "two");
  ASSERT_TRUE(seen.Await("two"));
  etcd::DeleteRangeRequest gone;
  gone.set_key(client_->Key("placement"));
  grpc::ClientContext context;
  etcd::DeleteRangeResponse went;
  ASSERT_TRUE(client_->server().kv->DeleteRange(&context, gone, &went).ok());
  ASSERT_TRUE(Eventually([&] { return watch->revision() == 0; }));
  EXPECT_EQ(seen.Get(), "two");
  EXPECT_EQ(watch->health().taken, 2u);
}

TEST_F(DiscoveryTest, AWatchOutlivesEtcd) {
  Last<std::string> document;
  Last<Addresses> members;
  const auto watch = WatchDocument(&document);
  const auto workers = WatchMembers(&members);
  const Announcement member(Client(), {"10.0.0.1:1", {}}, kTtl);
  Put("placement", "one");
  ASSERT_TRUE(document.Await("one"));
  ASSERT_TRUE(members.Await(Addresses{"10.0.0.1:1"}));
  etcd_.Stop();
  ASSERT_TRUE(Eventually([&] { return !watch->health().status.ok(); }));
  ASSERT_TRUE(Eventually([&] { return !member.registered(); })) << "for longer than the lease";
  EXPECT_EQ(document.Get(), "one");
  EXPECT_THAT(members.Get(), ElementsAre("10.0.0.1:1")) << "what was last known";
  ASSERT_TRUE(etcd_.Start().ok());
  ASSERT_TRUE(Eventually([&] { return member.registered(); }));
  Put("placement", "two");
  ASSERT_TRUE(document.Await("two"));
  EXPECT_TRUE(watch->health().status.ok()) << watch->health().status;
  const Announcement other(Client(), {"10.0.0.2:1", {}}, kTtl);
  ASSERT_TRUE(members.Await(Addresses{"10.0.0.1:1", "10.0.0.2:1"}));
}

TEST_F(DiscoveryTest, WhatChangedBehindACompactionIsReadAgain) {
  Last<std::string> seen;
  Put("placement", "one");
  const auto watch = WatchDocument(&seen);
  ASSERT_TRUE(seen.Await("one"));
  etcd_.Stop();
  ASSERT_TRUE(etcd_.Start().ok());
  int64_t revision = 0;
  for (int i = 0; i < 20; ++i) {
    Put("placement", fmt::format("version {}", i));
    revision = Get("placement").mod_revision();
  }
  etcd::CompactionRequest compact;
  compact.set_revision(revision);
  grpc::ClientContext context;
  etcd::CompactionResponse done;
  ASSERT_TRUE(client_->server().kv->Compact(&context, compact, &done).ok());
  ASSERT_TRUE(seen.Await("version 19"));
}

TEST_F(DiscoveryTest, OneOfSeveralLeadsAndAnotherTakesOver) {
  std::vector<std::unique_ptr<Election>> candidates;
  for (int i = 0; i < 3; ++i) candidates.push_back(Candidate(fmt::format("router {}", i)));
  const auto leader = [&]() -> std::optional<size_t> {
    std::optional<size_t> found;
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (!candidates[i]->leader()) continue;
      EXPECT_FALSE(found.has_value()) << "two lead";
      found = i;
    }
    return found;
  };
  int64_t term = 0;
  while (!candidates.empty()) {
    ASSERT_TRUE(Eventually([&] { return leader().has_value(); }));
    const size_t now = *leader();
    EXPECT_GT(candidates[now]->term(), term);
    term = candidates[now]->term();
    candidates.erase(candidates.begin() + static_cast<std::ptrdiff_t>(now));
  }
  EXPECT_TRUE(Get("leader").key().empty()) << "the last one has resigned, too";
}

TEST_F(DiscoveryTest, ALeaderKnowsThatItLeadsAndThatItDoesNot) {
  const auto election = Candidate("a");
  ASSERT_TRUE(Eventually([&] { return election->leader(); }));
  const int64_t term = election->term();
  Revoke(Get("leader").lease());
  ASSERT_TRUE(Eventually([&] { return election->term() > term; })) << "with another lease";
  etcd_.Stop();
  ASSERT_TRUE(Eventually([&] { return !election->leader(); })) << "by its own clock";
}

TEST_F(DiscoveryTest, ALeaderThatWasReplacedCannotWrite) {
  const auto first = Candidate("first");
  ASSERT_TRUE(Eventually([&] { return first->leader(); }));
  etcd::TxnRequest late;
  ASSERT_TRUE(first->Fence(&late).ok());
  etcd::PutRequest* put = late.add_success()->mutable_request_put();
  put->set_key(client_->Key("placement"));
  put->set_value("of the old leader");
  const int64_t term = first->term();
  const auto second = Candidate("second");
  // The key changes hands; `first` may not have heard of it when it writes.
  while (Get("leader").value() != "second") {
    if (const int64_t lease = Get("leader").lease(); lease != 0) Revoke(lease);
    ASSERT_TRUE(Eventually([&] { return !Get("leader").key().empty(); }));
  }
  const auto answer = client_->Txn(late, stopper_);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_FALSE(answer->succeeded());
  ASSERT_TRUE(Eventually([&] { return second->leader(); }));
  EXPECT_GT(second->term(), term);
  EXPECT_TRUE(
      PutDocument(*client_, "placement", "of the new leader", 0, second.get(), stopper_).ok());
  EXPECT_EQ(Get("placement").value(), "of the new leader");
}

TEST_F(DiscoveryTest, ADocumentIsReplacedOnlyByWhoHasReadTheLast) {
  const auto one = PutDocument(*client_, "placement", "one", 0, nullptr, stopper_);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_TRUE(
      absl::IsAborted(PutDocument(*client_, "placement", "other", 0, nullptr, stopper_).status()));
  const auto two = PutDocument(*client_, "placement", "two", *one, nullptr, stopper_);
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_TRUE(absl::IsAborted(
      PutDocument(*client_, "placement", "other", *one, nullptr, stopper_).status()));
  EXPECT_EQ(Get("placement").value(), "two");
  EXPECT_EQ(Get("placement").mod_revision(), *two);
}

TEST_F(DiscoveryTest, NothingIsWaitedForAtTheEndWhenEtcdIsAway) {
  Last<Addresses> seen;
  auto watch = WatchMembers(&seen);
  auto member = std::make_unique<Announcement>(Client(), Member{"10.0.0.1:1", {}}, absl::Hours(1));
  ASSERT_TRUE(seen.Await(Addresses{"10.0.0.1:1"}));
  etcd_.Stop();
  const absl::Time start = absl::Now();
  member.reset();
  watch.reset();
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
}

}  // namespace
}  // namespace switchyard::discovery
