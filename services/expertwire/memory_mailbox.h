// Where a router of the same machine leaves shared memory for a worker: a datagram socket of the
// abstract namespace, which needs no file and is reached by whoever shares the network namespace
// (the containers of a pod, the processes of a host). A datagram is one descriptor and the nonce
// that the router also says over the stream, by which the worker knows whose it is.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "services/expertwire/shared_pipe.h"

namespace switchyard::expertwire {

// One a worker. Not thread-safe.
class MemoryMailbox {
 public:
  static absl::StatusOr<std::unique_ptr<MemoryMailbox>> Open();

  const std::string& name() const { return name_; }
  // What was left under this nonce. NOT_FOUND if nothing was. Does not block.
  absl::StatusOr<UniqueFd> Take(uint64_t nonce);

 private:
  MemoryMailbox(UniqueFd socket, std::string name)
      : socket_(std::move(socket)), name_(std::move(name)) {}
  bool ReceiveOne();

  const UniqueFd socket_;
  const std::string name_;
  std::deque<std::pair<uint64_t, UniqueFd>> others_;  // came for streams that did not ask yet
};

// Leaves `fd` (which stays the caller's) at the mailbox of that name. UNAVAILABLE if none answers
// to it here. Does not block.
absl::Status LeaveMemory(const std::string& mailbox, uint64_t nonce, int fd);

}  // namespace switchyard::expertwire
