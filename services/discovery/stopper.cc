#include "services/discovery/stopper.h"

#include <grpcpp/client_context.h>

#include "services/base/check.h"

namespace switchyard::discovery {

void Stopper::Stop() {
  absl::MutexLock lock(&mutex_);
  stopped_ = true;
  changed_.SignalAll();
  if (call_ != nullptr) call_->TryCancel();
}

bool Stopper::stopped() const {
  absl::MutexLock lock(&mutex_);
  return stopped_;
}

bool Stopper::Pause(absl::Duration at_most) {
  absl::MutexLock lock(&mutex_);
  const auto over = [this] {
    mutex_.AssertHeld();
    return stopped_ || woken_;
  };
  changed_.Await(&mutex_, at_most, over);
  woken_ = false;
  return !stopped_;
}

void Stopper::Wake() {
  absl::MutexLock lock(&mutex_);
  woken_ = true;
  changed_.SignalAll();
}

Stopper::Call::Call(Stopper& stopper, grpc::ClientContext& context) : stopper_(stopper) {
  absl::MutexLock lock(&stopper_.mutex_);
  SY_CHECK(stopper_.call_ == nullptr);
  stopper_.call_ = &context;
  if (stopper_.stopped_) context.TryCancel();
}

Stopper::Call::~Call() {
  absl::MutexLock lock(&stopper_.mutex_);
  stopper_.call_ = nullptr;
}

}  // namespace switchyard::discovery
