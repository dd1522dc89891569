#include "tests/support/raw_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <utility>

namespace switchyard::testing {

RawClient::RawClient(const std::string& address, int receive_buffer) {
  const bool local = address.rfind("unix:", 0) == 0;
  fd_ = ::socket(local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (receive_buffer > 0) {
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
  }
  int rc = -1;
  if (local) {
    sockaddr_un where{};
    where.sun_family = AF_UNIX;
    std::strncpy(where.sun_path, address.c_str() + 5, sizeof where.sun_path - 1);
    rc = ::connect(fd_, reinterpret_cast<sockaddr*>(&where), sizeof where);
  } else {
    const size_t colon = address.rfind(':');
    sockaddr_in where{};
    where.sin_family = AF_INET;
    where.sin_port = htons(static_cast<uint16_t>(std::atoi(address.c_str() + colon + 1)));
    ::inet_pton(AF_INET, address.substr(0, colon).c_str(), &where.sin_addr);
    rc = ::connect(fd_, reinterpret_cast<sockaddr*>(&where), sizeof where);
  }
  if (rc != 0) Close();
}

RawClient::~RawClient() { Close(); }

void RawClient::Close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void RawClient::HalfClose() { ::shutdown(fd_, SHUT_WR); }

bool RawClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

bool RawClient::ReadMore() {
  pollfd wait{.fd = fd_, .events = POLLIN, .revents = 0};
  if (fd_ < 0 || end_ || ::poll(&wait, 1, 10'000) <= 0) return false;
  char bytes[16384];
  const ssize_t n = ::recv(fd_, bytes, sizeof bytes, 0);
  if (n <= 0) {
    end_ = true;
    return false;
  }
  buffer_.append(bytes, static_cast<size_t>(n));
  return true;
}

std::string RawClient::ReadUntil(std::string_view marker) {
  size_t at = 0;
  while ((at = buffer_.find(marker)) == std::string::npos) {
    if (!ReadMore()) return std::exchange(buffer_, {});
  }
  std::string out = buffer_.substr(0, at + marker.size());
  buffer_.erase(0, at + marker.size());
  return out;
}

std::string RawClient::ReadAll() {
  while (ReadMore()) {
  }
  return std::exchange(buffer_, {});
}

int StatusOf(const std::string& response) {
  return response.rfind("HTTP/1.1 ", 0) == 0 ? std::atoi(response.c_str() + 9) : -1;
}

std::string BodyOf(const std::string& response) {
  const size_t head = response.find("\r\n\r\n");
  if (head == std::string::npos) return {};
  const std::string rest = response.substr(head + 4);
  if (response.find("transfer-encoding: chunked") > head) return rest;
  std::string body;
  size_t at = 0;
  while (at < rest.size()) {
    char* end = nullptr;
    const size_t size = std::strtoul(rest.c_str() + at, &end, 16);
    if (size == 0) break;
    const size_t start = static_cast<size_t>(end - rest.c_str()) + 2;
    body += rest.substr(start, size);
    at = start + size + 2;
  }
  return body;
}

}  // namespace switchyard::testing
