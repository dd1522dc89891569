#include "services/expertwire/memory_mailbox.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <vector>

#include "services/base/random_bits.h"
#include "services/base/status.h"

namespace switchyard::expertwire {
namespace {

// Strangers of the namespace may send too; what they left is closed, oldest first.
constexpr size_t kMaxOthers = 64;

struct Address {
  sockaddr_un address = {};
  socklen_t bytes = 0;
};

// A name of the abstract namespace begins with a zero byte.
absl::StatusOr<Address> AddressOf(const std::string& name) {
  Address out;
  if (name.empty() || name.size() + 1 > sizeof(out.address.sun_path)) {
    return InvalidArgument("\"{}\" names no mailbox", name);
  }
  out.address.sun_family = AF_UNIX;
  std::memcpy(out.address.sun_path + 1, name.data(), name.size());
  out.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return out;
}

absl::StatusOr<UniqueFd> Socket() {
  UniqueFd socket_fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (socket_fd.get() < 0) return ResourceExhausted("no socket: {}", std::strerror(errno));
  return socket_fd;
}

// A datagram and the room for its one descriptor, for sendmsg and recvmsg.
struct Datagram {
  explicit Datagram(uint64_t value) : nonce(value) {
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
  }
  uint64_t nonce;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec part = {&nonce, sizeof(nonce)};
  msghdr message = {};
};

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryMailbox>> MemoryMailbox::Open() {
  std::string name = fmt::format("switchyard-{:016x}", RandomBits());
  SY_ASSIGN_OR_RETURN(UniqueFd socket_fd, Socket());
  SY_ASSIGN_OR_RETURN(const Address at, AddressOf(name));
  if (bind(socket_fd.get(), reinterpret_cast<const sockaddr*>(&at.address), at.bytes) != 0) {
    return ResourceExhausted("a mailbox cannot be bound: {}", std::strerror(errno));
  }
  return std::unique_ptr<MemoryMailbox>(new MemoryMailbox(std::move(socket_fd), std::move(name)));
}

bool MemoryMailbox::ReceiveOne() {
  Datagram datagram(0);
  const ssize_t bytes = recvmsg(socket_.get(), &datagram.message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (bytes < 0) return errno == EINTR;
  std::vector<UniqueFd> left;
  for (cmsghdr* control = CMSG_FIRSTHDR(&datagram.message); control != nullptr;
       control = CMSG_NXTHDR(&datagram.message, control)) {
    if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = CMSG_LEN(0); at + sizeof(int) <= control->cmsg_len; at += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, reinterpret_cast<const char*>(control) + at, sizeof(fd));
      left.emplace_back(fd);
    }
  }
  if (bytes != sizeof(datagram.nonce) || left.size() != 1) return true;  // no router's: closed
  others_.emplace_back(datagram.nonce, std::move(left.front()));
  if (others_.size() > kMaxOthers) others_.pop_front();
  return true;
}

absl::StatusOr<UniqueFd> MemoryMailbox::Take(uint64_t nonce) {
  for (size_t i = 0; i < kMaxOthers && ReceiveOne(); ++i) {
  }
  const auto it = std::ranges::find(others_, nonce, [](const auto& other) { return other.first; });
  if (it == others_.end()) return NotFound("nothing was left under this nonce");
  UniqueFd fd = std::move(it->second);
  others_.erase(it);
  return fd;
}

absl::Status LeaveMemory(const std::string& mailbox, uint64_t nonce, int fd) {
  SY_ASSIGN_OR_RETURN(const UniqueFd socket_fd, Socket());
  SY_ASSIGN_OR_RETURN(Address to, AddressOf(mailbox));
  Datagram datagram(nonce);
  datagram.message.msg_name = &to.address;
  datagram.message.msg_namelen = to.bytes;
  cmsghdr* control = CMSG_FIRSTHDR(&datagram.message);
  control->cmsg_level = SOL_SOCKET;
  control->cmsg_type = SCM_RIGHTS;
  control->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(control), &fd, sizeof(fd));
  if (sendmsg(socket_fd.get(), &datagram.message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
    return Unavailable("mailbox {}: {}", mailbox, std::strerror(errno));
  }
  return absl::OkStatus();
}

}  // namespace switchyard::expertwire
