// Which workers there are: each announces itself under PREFIX/workers/ADDRESS, on a lease, and
// routers follow the prefix. A worker that dies is gone once its lease runs out, one that ends at
// once.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "services/discovery/kept_lease.h"
#include "services/discovery/key_watch.h"

namespace switchyard::discovery {

struct Member {
  std::string address;                       // HOST:PORT, by which routers reach it
  std::map<std::string, std::string> facts;  // for people to read: "id", "model", "experts"

  friend bool operator==(const Member&, const Member&) = default;
};

// As it stands in etcd, and back. INVALID_ARGUMENT where an address is missing or is none.
std::string ToJson(const Member& member);
absl::StatusOr<Member> MemberFromJson(const std::string& json);

// INVALID_ARGUMENT unless others can reach it: HOST:PORT, no port 0, no address of any interface.
absl::Status CheckAdvertised(const std::string& address);

// A member's own end. Thread-safe.
class Announcement {
 public:
  Announcement(std::shared_ptr<EtcdClient> client, Member member,
               absl::Duration ttl = absl::Seconds(5));
  ~Announcement() = default;  // takes itself off the list

  bool registered() const { return lease_.id() != 0; }

 private:
  KeptLease lease_;
};

// The other end. Thread-safe.
class MemberWatch {
 public:
  // Called on a thread of the watch's, with the first and after each change, by address.
  using Changed = std::function<void(const std::vector<Member>&)>;

  MemberWatch(const std::shared_ptr<EtcdClient>& client, Changed changed);

 private:
  KeyWatch keys_;
};

}  // namespace switchyard::discovery
