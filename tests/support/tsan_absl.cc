// Linked into every binary of a ThreadSanitizer build: Debian's Abseil is not instrumented, so TSan
// would see none of the order that absl::Mutex and absl::Notification make. These functions take
// the place of the library's own by their symbols, tell TSan, and call them. Conditions are
// evaluated by the library under the lock, but inside of Unlock and Await, where TSan cannot know
// that it is held: what they touch is not looked at.
#include <dlfcn.h>

#include <type_traits>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}

namespace {

class InsideAbseil {
 public:
  InsideAbseil() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~InsideAbseil() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};

enum class Effect { kTakes, kTakesIfTrue, kGivesUp, kGivesUpAndTakes };

template <typename R, typename... Args>
R Call(R (*real)(Args...), void* mutex, Effect effect, Args... args) {
  if (effect == Effect::kGivesUp || effect == Effect::kGivesUpAndTakes) __tsan_release(mutex);
  const auto call = [&] {
    InsideAbseil inside;
    return real(args...);
  };
  if constexpr (std::is_void_v<R>) {
    call();
    if (effect != Effect::kGivesUp) __tsan_acquire(mutex);
  } else {
    const R result = call();
    if (effect == Effect::kGivesUpAndTakes || result) __tsan_acquire(mutex);
    return result;
  }
}

template <typename F>
F* Real(const char* symbol) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, symbol));
}

using absl::Condition;
using absl::CondVar;
using absl::Duration;
using absl::Mutex;
using absl::Notification;
using absl::Time;

}  // namespace

// Defines the function of `symbol`; the mutex or notification is its parameter m.
#define SY_HOOK(name, symbol, effect, returns, parameters, ...) \
  extern "C" returns name parameters __asm__(symbol);           \
  extern "C" returns name parameters {                          \
    static auto* const real = Real<returns parameters>(symbol); \
    return Call<returns>(real, m, Effect::effect, __VA_ARGS__); \
  }
#define SY_MUTEX "_ZN4absl7debian35Mutex"
#define SY_CONDVAR "_ZN4absl7debian37CondVar"
#define SY_NOTIFICATION "4absl7debian312Notification"

SY_HOOK(SyLock, SY_MUTEX "4LockEv", kTakes, void, (Mutex * m), m)
SY_HOOK(SyTryLock, SY_MUTEX "7TryLockEv", kTakesIfTrue, bool, (Mutex * m), m)
SY_HOOK(SyUnlock, SY_MUTEX "6UnlockEv", kGivesUp, void, (Mutex * m), m)
SY_HOOK(SyReaderLock, SY_MUTEX "10ReaderLockEv", kTakes, void, (Mutex * m), m)
SY_HOOK(SyReaderUnlock, SY_MUTEX "12ReaderUnlockEv", kGivesUp, void, (Mutex * m), m)
SY_HOOK(SyLockWhen, SY_MUTEX "8LockWhenERKNS0_9ConditionE", kTakes, void,
        (Mutex * m, const Condition* c), m, c)
SY_HOOK(SyAwait, SY_MUTEX "5AwaitERKNS0_9ConditionE", kGivesUpAndTakes, void,
        (Mutex * m, const Condition* c), m, c)
SY_HOOK(SyAwaitTimeout, SY_MUTEX "16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE",
        kGivesUpAndTakes, bool, (Mutex * m, const Condition* c, Duration d), m, c, d)
SY_HOOK(SyAwaitDeadline, SY_MUTEX "17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE",
        kGivesUpAndTakes, bool, (Mutex * m, const Condition* c, Time t), m, c, t)
SY_HOOK(SyWait, SY_CONDVAR "4WaitEPNS0_5MutexE", kGivesUpAndTakes, void, (CondVar * v, Mutex* m), v,
        m)
SY_HOOK(SyWaitTimeout, SY_CONDVAR "15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE", kGivesUpAndTakes,
        bool, (CondVar * v, Mutex* m, Duration d), v, m, d)
SY_HOOK(SyWaitDeadline, SY_CONDVAR "16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE", kGivesUpAndTakes,
        bool, (CondVar * v, Mutex* m, Time t), v, m, t)
SY_HOOK(SyNotify, "_ZN" SY_NOTIFICATION "6NotifyEv", kGivesUp, void, (Notification * m), m)
SY_HOOK(SyWaitNotified, "_ZNK" SY_NOTIFICATION "19WaitForNotificationEv", kTakes, void,
        (Notification * m), m)
SY_HOOK(SyWaitNotifiedTimeout,
        "_ZNK" SY_NOTIFICATION "30WaitForNotificationWithTimeoutENS0_8DurationE", kTakesIfTrue,
        bool, (Notification * m, Duration d), m, d)
SY_HOOK(SyWaitNotifiedDeadline,
        "_ZNK" SY_NOTIFICATION "31WaitForNotificationWithDeadlineENS0_4TimeE", kTakesIfTrue, bool,
        (Notification * m, Time t), m, t)
