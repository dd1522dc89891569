// What a process with a gateway says on standard output, and its wait for the end.
#pragma once

#include "gateway/gateway.h"
#include "services/rpc/shutdown_signal.h"

namespace switchyard::gateway {

// Prints "http: URL" and "grpc: ADDR", then "ready" when requests are first taken, a line each;
// returns when a signal to shut down comes.
void AnnounceAndWait(const Gateway& gateway, rpc::ShutdownSignal& signal);

}  // namespace switchyard::gateway
