#include "services/discovery/address_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "services/base/status.h"

namespace switchyard::discovery {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Hosts = std::vector<std::string>;

class AddressWatchTest : public ::testing::Test {
 protected:
  // Resolves only when told to.
  void Watch(std::vector<std::string> addresses, size_t most = 8) {
    watch_ = std::make_unique<AddressWatch>(
        AddressWatchOptions{.addresses = std::move(addresses),
                            .refresh = absl::InfiniteDuration(),
                            .resolver = [this](const std::string& host) -> absl::StatusOr<Hosts> {
                              asked_.push_back(host);
                              const auto it = names_.find(host);
                              if (it == names_.end()) return NotFound("{}: no such name", host);
                              return it->second;
                            },
                            .addresses_max = most},
        [this](const std::vector<Address>& now) {
          ++changes_;
          last_ = now;
        });
  }
  Hosts Targets() {
    Hosts out;
    for (const Address& address : watch_->addresses()) out.push_back(address.target);
    return out;
  }

  std::map<std::string, Hosts> names_;
  Hosts asked_;
  int changes_ = 0;
  std::vector<Address> last_;
  std::unique_ptr<AddressWatch> watch_;
};

TEST_F(AddressWatchTest, AddressesInNumbersAndSocketsStayAndAreNotResolved) {
  Watch({"10.0.0.1:8200", "[::1]:8200", "unix:/run/w.sock"});
  EXPECT_THAT(Targets(), ElementsAre("10.0.0.1:8200", "[::1]:8200", "unix:/run/w.sock"));
  watch_->Refresh();
  EXPECT_THAT(asked_, IsEmpty());
  EXPECT_EQ(changes_, 0);
}

TEST_F(AddressWatchTest, ADnsNameIsItsAddressesAsTheyChange) {
  Watch({"dns:experts.ns.svc:8200"});
  EXPECT_THAT(Targets(), IsEmpty());
  names_["experts.ns.svc"] = {"10.0.0.1", "10.0.0.2"};
  watch_->Refresh();
  EXPECT_THAT(last_, ElementsAre(Address{"10.0.0.1:8200", "experts.ns.svc"},
                                 Address{"10.0.0.2:8200", "experts.ns.svc"}));
  names_["experts.ns.svc"] = {"10.0.0.2", "10.0.0.3"};
  watch_->Refresh();
  EXPECT_THAT(Targets(), ElementsAre("10.0.0.1:8200", "10.0.0.2:8200", "10.0.0.3:8200"));
  watch_->Refresh();
  EXPECT_THAT(Targets(), ElementsAre("10.0.0.2:8200", "10.0.0.3:8200")) << "missing twice";
  EXPECT_EQ(changes_, 3);
  watch_->Refresh();
  EXPECT_EQ(changes_, 3);
}

TEST_F(AddressWatchTest, AnAddressThatIsMissingOnceIsNotDropped) {
  names_["a"] = {"10.0.0.1", "10.0.0.2"};
  Watch({"dns:a:1"});
  for (int i = 0; i < 6; ++i) {
    names_["a"] = i % 2 == 0 ? Hosts{"10.0.0.1", "10.0.0.2"} : Hosts{"10.0.0.1"};
    watch_->Refresh();
  }
  EXPECT_THAT(Targets(), ElementsAre("10.0.0.1:1", "10.0.0.2:1"));
  EXPECT_EQ(changes_, 1);
}

TEST_F(AddressWatchTest, ANameThatCannotBeResolvedKeepsItsAddresses) {
  names_["a"] = {"10.0.0.1"};
  Watch({"dns:a:1"});
  watch_->Refresh();
  names_.clear();
  for (int i = 0; i < 5; ++i) watch_->Refresh();
  EXPECT_THAT(Targets(), ElementsAre("10.0.0.1:1"));
  EXPECT_EQ(watch_->failures(), 5u);
}

TEST_F(AddressWatchTest, APlainNameIsFollowedOnceItHasSeveralAddresses) {
  names_["localhost"] = {"127.0.0.1"};
  names_["experts"] = {"10.0.0.1", "10.0.0.2"};
  Watch({"localhost:1", "experts:2"});
  EXPECT_THAT(Targets(), ElementsAre("localhost:1", "experts:2"));
  watch_->Refresh();
  EXPECT_THAT(Targets(), ElementsAre("localhost:1", "10.0.0.1:2", "10.0.0.2:2"));
  names_["experts"] = {"10.0.0.1"};
  watch_->Refresh();
  watch_->Refresh();
  EXPECT_THAT(Targets(), ElementsAre("localhost:1", "10.0.0.1:2"));
}

TEST_F(AddressWatchTest, AddressesOfANameAreBoundedAndCountOnce) {
  names_["a"] = {"10.0.0.1", "10.0.0.2", "10.0.0.3"};
  Watch({"10.0.0.1:1", "dns:a:1"}, /*most=*/2);
  watch_->Refresh();
  EXPECT_THAT(Targets(), ElementsAre("10.0.0.1:1", "10.0.0.2:1"));
}

TEST(AddressWatch, AResolverThatHangsHoldsNobodyUp) {
  const auto asked = std::make_shared<absl::Notification>();
  const auto release = std::make_shared<absl::Notification>();
  {
    AddressWatch watch({.addresses = {"dns:a:1"},
                        .refresh = absl::Milliseconds(1),
                        .resolver = [=](const std::string&) -> absl::StatusOr<Hosts> {
                          asked->Notify();
                          release->WaitForNotification();
                          return Hosts{"10.0.0.1"};
                        }},
                       [](const auto&) { ADD_FAILURE() << "the watch has ended"; });
    asked->WaitForNotification();
  }
  release->Notify();
}

TEST(AddressWatch, AThreadResolvesWithTheSystemsResolver) {
  absl::Mutex mutex;
  std::vector<Address> last;
  AddressWatch watch({.addresses = {"dns:localhost:1"}, .refresh = absl::Milliseconds(1)},
                     [&](const std::vector<Address>& now) {
                       absl::MutexLock lock(&mutex);
                       last = now;
                     });
  absl::MutexLock lock(&mutex);
  const auto came = [&] { return !last.empty(); };
  ASSERT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&came), absl::Seconds(30)));
  EXPECT_EQ(last[0].tls_name, "localhost");
  EXPECT_TRUE(last[0].target == "127.0.0.1:1" || last[0].target == "[::1]:1") << last[0].target;
}

TEST(SystemResolver, ResolvesNumbersNamesAndSaysWhatItCannot) {
  EXPECT_THAT(*SystemResolver("10.1.2.3"), ElementsAre("10.1.2.3"));
  EXPECT_THAT(*SystemResolver("fd00::1"), ElementsAre("[fd00::1]"));
  const auto none = SystemResolver("no-such-host.invalid");
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.status().message().find("no-such-host.invalid"), absl::string_view::npos);
}

}  // namespace
}  // namespace switchyard::discovery
