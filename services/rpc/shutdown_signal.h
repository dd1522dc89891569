// SIGTERM and SIGINT as something that main waits for, instead of a handler. Make it first in main:
// threads that start later inherit that the signals are blocked.
#pragma once

#include "absl/time/time.h"

namespace switchyard::rpc {

class ShutdownSignal {
 public:
  ShutdownSignal();

  // Until one of them comes.
  void Wait();
  // Whether one came within `timeout`.
  bool WaitFor(absl::Duration timeout);
};

}  // namespace switchyard::rpc
