// Hellos: what each end says of itself first, and whether two ends may work together.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "services/expertwire/frame.h"
#include "services/expertwire/numerics_id.h"
#include "services/kernels/kernels.h"

namespace switchyard::expertwire {

// What a peer is ready to receive before it gives credits back.
struct CreditGrant {
  uint64_t bytes = 64u << 20;
  uint32_t frames = 256;
};

// The stream between a router and a worker.
inline constexpr char kDispatchMethod[] = "/switchyard.internal.v1.ExpertWorker/Dispatch";

// Names the running kernel and the network namespace of this process, the two that ends must have
// in common to share memory (memory_mailbox.h). Empty where they cannot be read.
std::string HostId();

// A hello without held experts. The incarnation is drawn at random.
pb::Hello MakeHello(const std::string& peer_id, const NumericsClass& numerics,
                    const CreditGrant& grant, bool allow_mixed_numerics);

// Of this process, with kernels of `isa` on `threads` threads.
pb::RunsOn RunsOn(kernels::Isa isa, int threads);

// OK, or FAILED_PRECONDITION that names the field and both sides. Numerics ids that differ only in
// their arithmetic pass where either side allows mixed numerics.
absl::Status CheckPeer(const pb::Hello& mine, const pb::Hello& theirs);

}  // namespace switchyard::expertwire
