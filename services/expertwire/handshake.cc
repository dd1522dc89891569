#include "services/expertwire/handshake.h"

#include <unistd.h>

#include <string_view>

#include "services/base/file.h"
#include "services/base/random_bits.h"
#include "services/base/status.h"
#include "services/config/build_info.h"

namespace switchyard::expertwire {
namespace {

absl::Status Mismatch(const pb::Hello& mine, const pb::Hello& theirs, std::string_view field,
                      std::string_view a, std::string_view b, std::string_view mend) {
  return FailedPrecondition("{} of {} is \"{}\", of {} \"{}\"{}{}", field, mine.peer_id(), a,
                            theirs.peer_id(), b, mend.empty() ? "" : ": ", mend);
}

// Whether a hello's id is what its own fields give, that is, whether nothing else goes into it.
bool IdFollowsFields(const pb::Hello& hello) {
  return hello.numerics_id() ==
         NumericsId(hello.model_fingerprint(), hello.dtype(), hello.arithmetic());
}

}  // namespace

std::string HostId() {
  const absl::StatusOr<std::string> boot = ReadFile("/proc/sys/kernel/random/boot_id", 64);
  char network[64];
  const ssize_t bytes = readlink("/proc/self/ns/net", network, sizeof(network));
  if (!boot.ok() || bytes <= 0) return "";
  return fmt::format("{} {}", std::string_view(*boot).substr(0, boot->find('\n')),
                     std::string_view(network, static_cast<size_t>(bytes)));
}

pb::Hello MakeHello(const std::string& peer_id, const NumericsClass& numerics,
                    const CreditGrant& grant, bool allow_mixed_numerics) {
  pb::Hello hello;
  hello.set_wire_version(kWireVersion);
  hello.set_revision(kWireRevision);
  hello.set_peer_id(peer_id);
  hello.set_incarnation(RandomBits());
  hello.set_model_fingerprint(numerics.model_fingerprint);
  hello.set_dtype(std::string(Name(numerics.activations)));
  hello.set_arithmetic(numerics.arithmetic);
  hello.set_numerics_id(NumericsId(numerics));
  hello.set_credits_bytes(grant.bytes);
  hello.set_credits_frames(grant.frames);
  hello.set_allow_mixed_numerics(allow_mixed_numerics);
  return hello;
}

pb::RunsOn RunsOn(kernels::Isa isa, int threads) {
  pb::RunsOn out;
  out.set_version(config::Version());
  out.set_commit(config::Commit());
  out.set_isa(std::string(kernels::Name(isa)));
  out.set_threads(threads);
  return out;
}

absl::Status CheckPeer(const pb::Hello& mine, const pb::Hello& theirs) {
  if (mine.wire_version() != theirs.wire_version()) {
    return Mismatch(mine, theirs, "wire version", std::to_string(mine.wire_version()),
                    std::to_string(theirs.wire_version()), "upgrade the older one");
  }
  if (mine.model_fingerprint() != theirs.model_fingerprint()) {
    return Mismatch(mine, theirs, "model fingerprint", mine.model_fingerprint(),
                    theirs.model_fingerprint(), "both need the same checkpoint");
  }
  if (mine.dtype() != theirs.dtype()) {
    return Mismatch(mine, theirs, "dtype", mine.dtype(), theirs.dtype(),
                    "start both with the same --dtype");
  }
  if (mine.numerics_id() == theirs.numerics_id()) return absl::OkStatus();
  const bool only_arithmetic = IdFollowsFields(mine) && IdFollowsFields(theirs);
  if (only_arithmetic && (mine.allow_mixed_numerics() || theirs.allow_mixed_numerics())) {
    return absl::OkStatus();
  }
  if (!only_arithmetic) {
    return Mismatch(mine, theirs, "numerics id", mine.numerics_id(), theirs.numerics_id(), "");
  }
  return Mismatch(mine, theirs, "arithmetic class", mine.arithmetic(), theirs.arithmetic(),
                  "results would not be bit-equal; --isa or --allow-mixed-numerics changes that");
}

}  // namespace switchyard::expertwire
