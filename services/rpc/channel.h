// Channels to other services: message sizes, keepalive and fast bounded reconnects in one place.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "services/security/tls.h"

namespace grpc {
class Channel;
class ChannelArguments;
}  // namespace grpc

namespace switchyard::rpc {

// Largest message in either direction, on every listener and channel.
inline constexpr int kMessageBytesMax = 64 << 20;

// What may be wrong where a service that was never connected is UNAVAILABLE; behind gRPC's words.
inline constexpr char kUnreachedHint[] =
    " (is it up, is this its address, have both sides TLS or neither?)";

// The arguments that every channel of ours has: sizes, keepalive, reconnects after 50 ms to 1 s,
// and a connection of its own (no sharing between channels to one address).
grpc::ChannelArguments DefaultChannelArguments();

// A channel to HOST:PORT or unix:PATH (which is never encrypted). Connects on first use.
// `tls_name`: that the server's certificate bears, where it is not the host.
absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const std::string& address,
                                                       const security::TlsFiles& tls,
                                                       const std::string& tls_name = "");

// An attempt at once where the last one failed, for callers that pause between attempts themselves:
// gRPC's own pause may end by the machine's clock (through the absl that it is built with), an hour
// late where that is set back by one meanwhile.
void RetryNow(grpc::Channel& channel);

}  // namespace switchyard::rpc
