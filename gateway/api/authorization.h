// Who may ask: the bearer key of a request, and the opaque fair-share key that travels instead of
// it.
#pragma once

#include <grpcpp/server_context.h>

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "services/security/keys.h"

namespace switchyard::gateway {

// The fair-share key of the client (empty where no keys are asked for), or UNAUTHENTICATED.
// `authorization`: the value of the header, "Bearer KEY".
absl::StatusOr<std::string> Authorize(const security::KeySet* keys, std::string_view authorization);
// The same of a gRPC call.
absl::StatusOr<std::string> Authorize(const security::KeySet* keys,
                                      const grpc::CallbackServerContext& context);
// "" where the call has none.
std::string_view MetadataOf(const grpc::CallbackServerContext& context, const char* key);

}  // namespace switchyard::gateway
