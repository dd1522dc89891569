#include "services/expertwire/shared_pipe.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "services/base/clock.h"
#include "services/base/status.h"

namespace switchyard::expertwire {
namespace {

constexpr uint64_t kMagic = 0x3150'4d48'5359'5753;  // "SWYSHMP1"
// How an end sleeps: bits, since a peer may write anything.
constexpr uint32_t kAwake = 0, kByQueue = 1, kByBell = 2;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;

}  // namespace

// Both indices only grow; each on a cache line of its own.
struct SharedPipe::Ring {
  alignas(64) std::atomic<uint64_t> written;
  alignas(64) std::atomic<uint64_t> read;
  // How the reader sleeps, and what it sleeps on; how its writer does, for want of room.
  alignas(64) std::atomic<uint32_t> reader_sleeps;
  std::atomic<uint32_t> bell;
  alignas(64) std::atomic<uint32_t> writer_sleeps;
};

struct SharedPipe::Memory {
  uint64_t magic;
  Ring rings[2];  // the creator writes the first
  alignas(4096) std::byte bytes[2][kRingBytes];
};

static_assert(std::atomic<uint64_t>::is_always_lock_free);

SharedPipe::SharedPipe(UniqueFd fd, Memory* memory, bool creator)
    : fd_(std::move(fd)),
      memory_(memory),
      out_(memory->rings[creator ? 0 : 1]),
      in_(memory->rings[creator ? 1 : 0]),
      out_bytes_(memory->bytes[creator ? 0 : 1]),
      in_bytes_(memory->bytes[creator ? 1 : 0]) {}

SharedPipe::~SharedPipe() { munmap(memory_, sizeof(Memory)); }

absl::StatusOr<std::unique_ptr<SharedPipe>> SharedPipe::Map(UniqueFd fd, bool creator) {
  void* at = mmap(nullptr, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) {
    return ResourceExhausted("shared memory cannot be mapped: {}", std::strerror(errno));
  }
  // Fresh memory of the kernel is all zero, which is how the rings begin.
  auto* memory = static_cast<Memory*>(at);
  if (creator) memory->magic = kMagic;
  std::unique_ptr<SharedPipe> pipe(new SharedPipe(std::move(fd), memory, creator));
  if (memory->magic != kMagic) return InvalidArgument("this shared memory is no pipe of ours");
  return pipe;
}

absl::StatusOr<std::unique_ptr<SharedPipe>> SharedPipe::Create() {
  UniqueFd fd(memfd_create("switchyard-link", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd.get() < 0 || ftruncate(fd.get(), sizeof(Memory)) != 0 ||
      fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) {
    return ResourceExhausted("shared memory cannot be made: {}", std::strerror(errno));
  }
  return Map(std::move(fd), true);
}

absl::StatusOr<std::unique_ptr<SharedPipe>> SharedPipe::Adopt(UniqueFd fd) {
  struct stat file = {};
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals || fstat(fd.get(), &file) != 0 ||
      static_cast<uint64_t>(file.st_size) != sizeof(Memory)) {
    return InvalidArgument("the descriptor is no sealed memory of {} bytes", sizeof(Memory));
  }
  return Map(std::move(fd), false);
}

absl::StatusOr<size_t> SharedPipe::Write(const void* from, size_t bytes) {
  const uint64_t taken = out_.read.load(std::memory_order_acquire);
  if (taken > written_ || written_ - taken > kRingBytes) {
    return DataLoss("the peer broke the shared memory");
  }
  const size_t n = std::min(bytes, static_cast<size_t>(kRingBytes - (written_ - taken)));
  if (n == 0) return n;  // there may be no memory behind nothing
  const size_t at = written_ % kRingBytes, first = std::min(n, kRingBytes - at);
  std::memcpy(out_bytes_ + at, from, first);
  std::memcpy(out_bytes_, static_cast<const std::byte*>(from) + first, n - first);
  written_ += n;
  out_.written.store(written_);
  return n;
}

absl::StatusOr<size_t> SharedPipe::Read(void* to, size_t bytes) {
  const uint64_t there = in_.written.load(std::memory_order_acquire);
  if (there < read_ || there - read_ > kRingBytes) {
    return DataLoss("the peer broke the shared memory");
  }
  const size_t n = std::min(bytes, static_cast<size_t>(there - read_));
  if (n == 0) return n;
  const size_t at = read_ % kRingBytes, first = std::min(n, kRingBytes - at);
  std::memcpy(to, in_bytes_ + at, first);
  std::memcpy(static_cast<std::byte*>(to) + first, in_bytes_, n - first);
  read_ += n;
  in_.read.store(read_);
  return n;
}

// Who sleeps puts its flag up before the last look at the ring; who writes or reads looks at the
// flag after that. All four are sequentially consistent, so one of the two sees the other.
bool SharedPipe::Arm(bool wants_room, bool by_bell) {
  const uint32_t how = by_bell ? kByBell : kByQueue;
  in_.reader_sleeps.store(how);
  if (wants_room) out_.writer_sleeps.store(how);
  const bool readable = in_.written.load() != read_;
  const bool room = wants_room && out_.read.load() + kRingBytes != written_;
  if (!readable && !room) return true;
  in_.reader_sleeps.store(kAwake, std::memory_order_relaxed);
  out_.writer_sleeps.store(kAwake, std::memory_order_relaxed);
  return false;
}

Bell SharedPipe::bell() const { return {&in_.bell, in_.bell.load()}; }

bool SharedPipe::MustTell() {
  uint32_t how = kAwake;
  if (out_.reader_sleeps.load() != kAwake && out_.read.load() != written_) {
    how |= out_.reader_sleeps.exchange(kAwake);
  }
  if (in_.writer_sleeps.load() != kAwake && in_.written.load() != read_ + kRingBytes) {
    how |= in_.writer_sleeps.exchange(kAwake);
  }
  if ((how & kByBell) != 0) {
    out_.bell.fetch_add(1);
    syscall(SYS_futex, &out_.bell, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  }
  return (how & kByQueue) != 0;
}

bool SleepOnBells(std::span<const Bell> bells, absl::Time until) {
  futex_waitv waiters[kMaxBells] = {};
  for (size_t i = 0; i < bells.size(); ++i) {
    waiters[i] = {.val = bells[i].value,
                  .uaddr = reinterpret_cast<uintptr_t>(bells[i].word),
                  .flags = FUTEX_32,
                  .__reserved = 0};
  }
  // The kernel's clock that nobody sets, of which `until` knows only how long it is to come.
  timespec end;
  clock_gettime(CLOCK_MONOTONIC, &end);
  end = absl::ToTimespec(absl::DurationFromTimespec(end) +
                         std::max(absl::ZeroDuration(), until - SteadyNow()));
  const auto count = static_cast<unsigned>(bells.size());
  return syscall(SYS_futex_waitv, waiters, count, 0, &end, CLOCK_MONOTONIC) >= 0 || errno != ENOSYS;
}

}  // namespace switchyard::expertwire
