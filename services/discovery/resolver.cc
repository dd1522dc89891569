#include "services/discovery/resolver.h"

#include <arpa/inet.h>
#include <netdb.h>

#include <memory>
#include <set>

#include "services/base/status.h"

namespace switchyard::discovery {
namespace {

std::string TextOf(const sockaddr* address, socklen_t length) {
  char text[NI_MAXHOST] = {};
  if (::getnameinfo(address, length, text, sizeof text, nullptr, 0, NI_NUMERICHOST) != 0) return "";
  return address->sa_family == AF_INET6 ? fmt::format("[{}]", text) : std::string(text);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> SystemResolver(const std::string& host) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* raw = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), nullptr, &hints, &raw); error != 0) {
    const std::string why = fmt::format("{}: {}", host, ::gai_strerror(error));
    return error == EAI_NONAME ? NotFound("{}", why) : Unavailable("{}", why);
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> all(raw, ::freeaddrinfo);
  for (const int family : {AF_INET, AF_INET6}) {
    std::set<std::string> found;
    for (const addrinfo* a = all.get(); a != nullptr; a = a->ai_next) {
      if (a->ai_family != family) continue;
      if (std::string text = TextOf(a->ai_addr, a->ai_addrlen); !text.empty()) found.insert(text);
    }
    if (!found.empty()) return std::vector<std::string>(found.begin(), found.end());
  }
  return NotFound("{}: no address", host);
}

bool IsNumeric(const std::string& host) {
  in6_addr out;
  if (host.size() > 2 && host.front() == '[') {
    const std::string inner = host.substr(1, host.size() - 2);
    return ::inet_pton(AF_INET6, inner.c_str(), &out) == 1 || inner.find('%') != std::string::npos;
  }
  return ::inet_pton(AF_INET, host.c_str(), &out) == 1;
}

}  // namespace switchyard::discovery
