#include "tests/support/etcd_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "absl/time/clock.h"
#include "services/base/check.h"
#include "services/base/file.h"
#include "services/base/status.h"
#include "services/discovery/etcd_client.h"

namespace switchyard {
namespace {

int FreePort() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  SY_CHECK(::bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0);
  SY_CHECK(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  ::close(fd);
  return ntohs(address.sin_port);
}

}  // namespace

EtcdProcess::EtcdProcess() {
  std::string name = (std::filesystem::temp_directory_path() / "etcd_XXXXXX").string();
  SY_CHECK(::mkdtemp(name.data()) != nullptr);
  dir_ = name;
}

EtcdProcess::~EtcdProcess() {
  Stop();
  std::filesystem::remove_all(dir_);
}

absl::Status EtcdProcess::Start() {
  const bool again = !url_.empty();
  absl::Status status;
  // Somebody else may take a port that was free.
  for (int attempt = 0; attempt < (again ? 1 : 5); ++attempt) {
    if (!again) {
      url_ = fmt::format("http://127.0.0.1:{}", FreePort());
      peer_url_ = fmt::format("http://127.0.0.1:{}", FreePort());
      std::filesystem::remove_all(dir_ + "/data");
    }
    status = Launch();
    if (status.ok()) return status;
  }
  return status;
}

absl::Status EtcdProcess::Launch() {
  const std::vector<std::string> arguments = {
      "etcd", "--data-dir", dir_ + "/data", "--listen-client-urls", url_, "--advertise-client-urls",
      url_, "--listen-peer-urls", peer_url_, "--initial-advertise-peer-urls", peer_url_,
      "--initial-cluster", "default=" + peer_url_,
      // Also the least time that a lease lasts.
      "--heartbeat-interval", "10", "--election-timeout", "50", "--log-level", "error"};
  std::vector<char*> argv;
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  const std::string log = dir_ + "/log";
  ::posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  ::posix_spawn_file_actions_adddup2(&actions, 1, 2);
  const int error = ::posix_spawnp(&pid_, "etcd", &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    pid_ = -1;
    return NotFound("etcd: {} (Debian's package etcd-server has it)", std::strerror(error));
  }
  const absl::Time bound = absl::Now() + absl::Seconds(30);
  while (absl::Now() < bound) {
    if (::waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = -1;
      return Unavailable("etcd ended: {}", ReadFile(log, 1 << 20).value_or("no log"));
    }
    if (Answers()) return absl::OkStatus();
    absl::SleepFor(absl::Milliseconds(10));
  }
  Stop();
  return DeadlineExceeded("etcd does not answer");
}

bool EtcdProcess::Answers() const {
  discovery::Stopper stopper;
  discovery::etcd::RangeRequest request;
  request.set_key("a");
  return (*discovery::EtcdClient::Create({.urls = {url_}}))->Range(request, stopper).ok();
}

void EtcdProcess::Stop() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

}  // namespace switchyard
