// What a process with a gateway says on standard output, and its wait for the end.
#pragma once

#include <functional>

#include "gateway/gateway.h"
#include "services/rpc/shutdown_signal.h"

namespace switchyard::gateway {

// Prints "http: URL" and "grpc: ADDR", then "ready" when requests are first taken, a line each;
// returns when a signal to shut down comes, or `goes_on` (may be null) says that it does not.
void AnnounceAndWait(const Gateway& gateway, rpc::ShutdownSignal& signal,
                     const std::function<bool()>& goes_on = nullptr);

}  // namespace switchyard::gateway
