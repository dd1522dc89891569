// The one map between absl::Status and grpc::Status. The codes are the same by number.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace switchyard::rpc {

grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace switchyard::rpc
