// Ends what one thread has under way, for good: its pauses, and its gRPC calls.
//
// Thread-safe.
#pragma once

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/base/clock.h"

namespace grpc {
class ClientContext;
}

namespace switchyard::discovery {

class Stopper {
 public:
  void Stop();
  bool stopped() const;
  // Waits, but not beyond Stop or the next Wake, also one that came since the last pause. Whether
  // to go on: false once stopped.
  bool Pause(absl::Duration at_most);
  void Wake();

  // While it lives, Stop cancels the call of this context. One at a time.
  class Call {
   public:
    Call(Stopper& stopper, grpc::ClientContext& context);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    Stopper& stopper_;
  };

 private:
  mutable absl::Mutex mutex_;
  SteadyCondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* call_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace switchyard::discovery
