// The HTTP listener of --metrics: GET /metrics in Prometheus' text format.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "services/telemetry/metrics.h"

namespace prometheus {
class Exposer;
}

namespace switchyard::telemetry {

class Exposer {
 public:
  // INVALID_ARGUMENT where Start can never listen: unix:PATH. So that it is told before a model is
  // loaded.
  static absl::Status CheckAddress(const std::string& address);
  // HOST:PORT, port 0 chooses one. UNAVAILABLE if it cannot be listened on.
  static absl::StatusOr<std::unique_ptr<Exposer>> Start(const std::string& address,
                                                        std::shared_ptr<Metrics> metrics);
  ~Exposer();

  const std::string& url() const { return url_; }  // "http://127.0.0.1:9400/metrics"

 private:
  Exposer() = default;
  std::shared_ptr<Metrics> metrics_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::string url_;
};

}  // namespace switchyard::telemetry
