#include "services/telemetry/exposer.h"

#include <prometheus/exposer.h>

#include <exception>

#include "services/base/logging.h"
#include "services/base/status.h"

namespace switchyard::telemetry {

absl::Status Exposer::CheckAddress(const std::string& address) {
  if (address.rfind("unix:", 0) != 0) return absl::OkStatus();
  return UsageError("--metrics {}: metrics are served over HTTP on HOST:PORT, not on a socket",
                    address);
}

absl::StatusOr<std::unique_ptr<Exposer>> Exposer::Start(const std::string& address,
                                                        std::shared_ptr<Metrics> metrics) {
  SY_RETURN_IF_ERROR(CheckAddress(address));
  std::unique_ptr<Exposer> out(new Exposer);
  out->metrics_ = std::move(metrics);
  const std::string host = address.substr(0, address.rfind(':'));
  const bool loopback = host == "localhost" || host == "127.0.0.1" || host == "[::1]";
  if (!loopback) {
    log::Warning("--metrics {} can be read from other machines: it has neither TLS nor keys",
                 address);
  }
  // The listener takes numeric addresses only.
  const std::string bind =
      host == "localhost" ? "127.0.0.1" + address.substr(host.size()) : address;
  try {
    out->exposer_ = std::make_unique<prometheus::Exposer>(bind, 2);
    out->exposer_->RegisterCollectable(out->metrics_);
    const std::vector<int> ports = out->exposer_->GetListeningPorts();
    out->url_ = fmt::format("http://{}:{}/metrics", host, ports.empty() ? 0 : ports.front());
  } catch (const std::exception& error) {
    return Unavailable("--metrics {}: cannot be listened on ({})", address, error.what());
  }
  return out;
}

Exposer::~Exposer() = default;

}  // namespace switchyard::telemetry
