// The addresses of a host's name, by the resolver of the system.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard::discovery {

// The addresses of `host`, sorted, without repeats: "10.0.0.1", "[fd00::1]". Never empty: NOT_FOUND
// or UNAVAILABLE instead. May take as long as the system's resolver does.
using Resolver = std::function<absl::StatusOr<std::vector<std::string>>(const std::string& host)>;

// IPv4 addresses, or those of IPv6 where there are none: a host that has both is one host.
absl::StatusOr<std::vector<std::string>> SystemResolver(const std::string& host);

// Whether it is an address itself: "10.0.0.1", "[::1]".
bool IsNumeric(const std::string& host);

}  // namespace switchyard::discovery
