#include "gateway/announce.h"

#include <iostream>

#include "services/base/logging.h"

namespace switchyard::gateway {

void AnnounceAndWait(const Gateway& gateway, rpc::ShutdownSignal& signal,
                     const std::function<bool()>& goes_on) {
  std::cout << "http: " << gateway.http_url() << "\n"
            << "grpc: " << gateway.grpc_address() << std::endl;
  std::string told;
  while (!signal.WaitFor(absl::Milliseconds(10))) {
    const std::string missing = gateway.Missing();
    if (missing.empty()) {
      std::cout << "ready" << std::endl;
      log::Info("model {} is ready", gateway.model().name());
      if (!goes_on) return signal.Wait();
      while (goes_on() && !signal.WaitFor(absl::Milliseconds(200))) {
      }
      return;
    }
    if (missing != told) log::Info("not ready: {}", told = missing);
  }
}

}  // namespace switchyard::gateway
