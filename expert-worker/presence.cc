#include "expert-worker/presence.h"

#include <utility>

#include "services/base/status.h"

namespace switchyard::worker {

absl::StatusOr<std::unique_ptr<Presence>> Presence::Create(const config::v1::WorkerConfig& config) {
  auto out = std::unique_ptr<Presence>(new Presence(config));
  SY_ASSIGN_OR_RETURN(out->etcd_, discovery::EtcdClient::Create(config.etcd()));
  if (out->etcd_ == nullptr) return out;
  // Before it listens, some port stands for the one that port 0 will choose.
  std::string listening = config.listen();
  if (listening.ends_with(":0")) listening.back() = '1';
  if (absl::Status fits = discovery::CheckAdvertised(out->Address(listening)); !fits.ok()) {
    return UsageError("{}: {}", config.has_advertise() ? "--advertise" : "--etcd needs --advertise",
                      ToStd(fits.message()));
  }
  return out;
}

std::string Presence::Address(const std::string& listening) const {
  return config_.has_advertise() ? config_.advertise() : listening;
}

void Presence::Announce(const std::string& listening, const Worker& worker,
                        telemetry::Metrics& metrics) {
  if (etcd_ == nullptr) return;
  const expertwire::pb::Hello hello = worker.hello();
  announcement_ = std::make_unique<discovery::Announcement>(
      etcd_, discovery::Member{.address = Address(listening),
                               .facts = {{"id", hello.peer_id()},
                                         {"model_fingerprint", hello.model_fingerprint()},
                                         {"numerics_id", hello.numerics_id()}}});
  registration_ = metrics.AddCollector("expert-worker", [this](telemetry::Samples& samples) {
    samples.Gauge(telemetry::kWorkerAnnounced, announcement_->registered());
    etcd_->CollectTo(samples);
  });
}

void Presence::Withdraw() {
  registration_ = {};
  announcement_.reset();
}

}  // namespace switchyard::worker
