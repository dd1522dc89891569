// SPDX-License-Identifier: Apache-2.0
// A wall clock of its own for one process: preloaded (LD_PRELOAD), it adds the nanoseconds that lie
// in the file $CHAOS_CLOCK (int64, mapped, changed at any time) to what the process hears of
// CLOCK_REALTIME. Waits until a time of that clock end by it, as the kernel's do: those under way
// feel a jump too. CLOCK_MONOTONIC and waits by it are left alone.
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>
#include <ctime>

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kSlice = 20'000'000;  // a wait looks at the clock so often

const volatile int64_t nothing = 0;
const volatile int64_t* offset = &nothing;

template <typename Function>
Function* Real(const char* name, Function*) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

__attribute__((constructor)) void MapClock() {
  const char* path = std::getenv("CHAOS_CLOCK");
  const int fd = path == nullptr ? -1 : open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  void* const at = mmap(nullptr, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  if (at != MAP_FAILED) offset = static_cast<const volatile int64_t*>(at);
}

int64_t Nanoseconds(const timespec& t) { return t.tv_sec * kSecond + t.tv_nsec; }
timespec TimespecOf(int64_t ns) { return {ns / kSecond, ns % kSecond}; }

int TrueTime(clockid_t clock, timespec* t) {
  static const auto real = Real("clock_gettime", &clock_gettime);
  return real(clock, t);
}

int64_t TrueNow() {
  timespec t;
  TrueTime(CLOCK_REALTIME, &t);
  return Nanoseconds(t);
}

// When, by the true clock, to look again; `last`: that is the end of the wait.
timespec NextLook(const timespec& until, bool* last) {
  const int64_t now = TrueNow();
  const bool never = until.tv_sec > INT64_MAX / kSecond - 1;
  const int64_t left = never ? INT64_MAX : Nanoseconds(until) - (now + *offset);
  *last = left <= kSlice;
  return TimespecOf(now + (!*last ? kSlice : left < 0 ? 0 : left));
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* t) noexcept {
  const int result = TrueTime(clock, t);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    *t = TimespecOf(Nanoseconds(*t) + *offset);
  }
  return result;
}

int gettimeofday(timeval* t, void*) noexcept {
  const int64_t now = TrueNow() + *offset;
  t->tv_sec = now / kSecond;
  t->tv_usec = now % kSecond / 1000;
  return 0;
}

time_t time(time_t* out) noexcept {
  const time_t now = (TrueNow() + *offset) / kSecond;
  if (out != nullptr) *out = now;
  return now;
}

long syscall(long number, ...) noexcept {
  long a[6];
  va_list list;
  va_start(list, number);
  for (long& argument : a) argument = va_arg(list, long);
  va_end(list);
  static const auto real = Real("syscall", &syscall);
  const bool by_futex = number == SYS_futex && a[3] != 0 && (a[1] & FUTEX_CLOCK_REALTIME) != 0 &&
                        (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET;
  const bool by_several = number == SYS_futex_waitv && a[3] != 0 && a[4] == CLOCK_REALTIME;
  if (!by_futex && !by_several) return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  while (true) {
    bool last = false;
    const timespec look = NextLook(*reinterpret_cast<const timespec*>(a[3]), &last);
    const long result = real(number, a[0], a[1], a[2], &look, a[4], a[5]);
    if (last || result != -1 || errno != ETIMEDOUT) return result;
  }
}

int pthread_cond_timedwait(pthread_cond_t* condition, pthread_mutex_t* mutex,
                           const timespec* until) {
  static const auto real = Real("pthread_cond_timedwait", &pthread_cond_timedwait);
  while (true) {
    bool last = false;
    const timespec look = NextLook(*until, &last);
    const int result = real(condition, mutex, &look);
    if (last || result != ETIMEDOUT) return result;
  }
}

}  // extern "C"
