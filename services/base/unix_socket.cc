#include "services/base/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "services/base/status.h"

namespace switchyard {

absl::Status ClearUnixSocket(const std::string& path) {
  sockaddr_un where{};
  where.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof where.sun_path) {
    return InvalidArgument("a socket's path has {} bytes, allowed are 1 to {}", path.size(),
                           sizeof where.sun_path - 1);
  }
  std::memcpy(where.sun_path, path.data(), path.size());
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return absl::OkStatus();
  if (!S_ISSOCK(info.st_mode)) return Unavailable("{} exists and is not a socket", path);
  const int probe = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (probe < 0) return Unavailable("socket: {}", std::strerror(errno));
  // A full backlog (EAGAIN) is a server's too.
  const bool alive = ::connect(probe, reinterpret_cast<sockaddr*>(&where), sizeof where) == 0 ||
                     errno != ECONNREFUSED;
  ::close(probe);
  if (alive) return Unavailable("another server listens on {}", path);
  ::unlink(path.c_str());
  return absl::OkStatus();
}

}  // namespace switchyard
