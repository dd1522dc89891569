// Two streams of bytes in memory that a router and a worker of one machine share: one ring each
// way, one writer and one reader a ring. It carries frames while gRPC's stream, which it belongs
// to, says who is alive and wakes who sleeps. Bytes are copied in and out, as a socket does, so
// nothing of a peer's making is looked at while the peer can still change it, and nothing has to be
// given back.
//
// The memory is a memfd that cannot shrink: a peer may write nonsense into it, which its reader
// finds in the frames, but cannot take it away. One thread at a time on each side.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/base/unique_fd.h"

namespace switchyard::expertwire {

// A word of shared memory that changes when it is rung, and what it was.
struct Bell {
  std::atomic<uint32_t>* word = nullptr;
  uint32_t value = 0;
};

// Sleeps until one of at most kMaxBells has changed, or `until`. False where the kernel cannot
// (futex_waitv, Linux 5.16).
inline constexpr size_t kMaxBells = 64;
bool SleepOnBells(std::span<const Bell> bells, absl::Time until);

class SharedPipe {
 public:
  static constexpr size_t kRingBytes = size_t{2} << 20;

  // Makes the memory; it goes when both ends have. RESOURCE_EXHAUSTED if the kernel refuses.
  static absl::StatusOr<std::unique_ptr<SharedPipe>> Create();
  // The other end of what Create made, from its descriptor. INVALID_ARGUMENT if it is not that.
  static absl::StatusOr<std::unique_ptr<SharedPipe>> Adopt(UniqueFd fd);
  ~SharedPipe();
  SharedPipe(const SharedPipe&) = delete;
  SharedPipe& operator=(const SharedPipe&) = delete;

  int fd() const { return fd_.get(); }

  // As many of `bytes` as there is room for, or as there are. DATA_LOSS if the peer broke the ring.
  absl::StatusOr<size_t> Write(const void* from, size_t bytes);
  absl::StatusOr<size_t> Read(void* to, size_t bytes);

  // This end is about to sleep until the peer rings: once there is something to read, or, with
  // `wants_room`, something was read. `by_bell`: on bell(), which was taken before; otherwise it
  // asks to be told by gRPC. False if there is something already.
  bool Arm(bool wants_room, bool by_bell);
  Bell bell() const;
  // Rings the peer if it sleeps and waits for what this end did since; true if it asked for gRPC.
  bool MustTell();

 private:
  struct Ring;
  struct Memory;

  SharedPipe(UniqueFd fd, Memory* memory, bool creator);
  static absl::StatusOr<std::unique_ptr<SharedPipe>> Map(UniqueFd fd, bool creator);

  const UniqueFd fd_;
  Memory* const memory_;
  Ring& out_;
  Ring& in_;
  std::byte* const out_bytes_;
  const std::byte* const in_bytes_;
  // Our own ends of the rings; what the peer sees of them is a copy.
  uint64_t written_ = 0, read_ = 0;
};

}  // namespace switchyard::expertwire
