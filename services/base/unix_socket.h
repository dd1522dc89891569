// Sockets in the file system, before a listener takes their place.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace switchyard {

// Removes the socket that a dead process left at `path`. UNAVAILABLE where a server listens there,
// or where something else stands in the way, which is not ours to remove.
absl::Status ClearUnixSocket(const std::string& path);

}  // namespace switchyard
