#include "router/placement_source.h"

#include <google/protobuf/util/message_differencer.h>

#include <utility>

#include "services/base/status.h"
#include "services/discovery/document_watch.h"
#include "services/discovery/file_watch.h"
#include "services/placement/document.h"
#include "services/telemetry/names.h"

namespace switchyard::router {
namespace {

constexpr char kEtcd[] = "etcd";
constexpr char kKey[] = "placement";
constexpr char kElection[] = "balancer";

}  // namespace

absl::Status PlacementSource::Check(const PlacementSourceOptions& options) {
  const bool file = !options.from.empty() && options.from != kEtcd;
  if (options.from == kEtcd && options.etcd == nullptr) {
    return UsageError("--placement etcd: give the servers with --etcd URL,URL");
  }
  if (options.balances && file) {
    return UsageError(
        "--balance and --placement {}: either the router decides where experts lie or the file; "
        "give one",
        options.from);
  }
  if (!file) return absl::OkStatus();
  const auto document = placement::ReadDocument(options.from);
  if (!document.ok()) return Annotate(document.status(), "--placement");
  return Annotate(placement::CheckEpoch(*document), "--placement: " + options.from);
}

absl::StatusOr<std::unique_ptr<PlacementSource>> PlacementSource::Create(
    PlacementSourceOptions options, Take take) {
  SY_RETURN_IF_ERROR(Check(options));
  auto out =
      std::unique_ptr<PlacementSource>(new PlacementSource(std::move(options), std::move(take)));
  SY_RETURN_IF_ERROR(out->Begin());
  return out;
}

absl::Status PlacementSource::Begin() {
  const auto take = [this](const std::string& text) -> absl::Status {
    SY_ASSIGN_OR_RETURN(const v1::Placement placement, placement::Parse(text));
    return Accept(placement);
  };
  if (options_.etcd != nullptr && (options_.balances || options_.from == kEtcd)) {
    auto watch = std::make_unique<discovery::DocumentWatch>(options_.etcd, kKey, take);
    in_etcd_ = watch.get();
    source_ = std::move(watch);
    if (!options_.balances) return absl::OkStatus();
    election_ = std::make_unique<discovery::Election>(
        options_.etcd,
        discovery::ElectionOptions{.name = kElection, .candidate = options_.router_id});
  } else if (!options_.from.empty()) {
    SY_ASSIGN_OR_RETURN(const v1::Placement first, placement::ReadDocument(options_.from));
    SY_RETURN_IF_ERROR(Annotate(Accept(first), options_.from));
    source_ = std::make_unique<discovery::FileWatch>(
        discovery::FileWatchOptions{.path = options_.from}, take);
  }
  return absl::OkStatus();
}

PlacementSource::~PlacementSource() { Stop(); }

// A document that was changed without a higher epoch would be passed over by everybody, unseen.
absl::Status PlacementSource::Accept(const v1::Placement& placement) {
  SY_RETURN_IF_ERROR(placement::CheckEpoch(placement));
  absl::MutexLock lock(&mutex_);
  if (last_ && google::protobuf::util::MessageDifferencer::Equals(*last_, placement)) {
    return absl::OkStatus();
  }
  if (last_ && placement.epoch() <= last_->epoch()) {
    return FailedPrecondition("epoch: {} is not above {}, which is followed; raise it",
                              placement.epoch(), last_->epoch());
  }
  SY_RETURN_IF_ERROR(take_(placement));
  last_ = placement;
  return absl::OkStatus();
}

bool PlacementSource::leads() const {
  return options_.balances && (election_ == nullptr || election_->leader());
}

absl::Status PlacementSource::Publish(const v1::Placement& placement) {
  if (in_etcd_ == nullptr) return Accept(placement);
  // A version is taken before its revision is told: what comes after this one is refused by etcd,
  // what came before is seen below.
  const int64_t revision = in_etcd_->revision();
  {
    absl::MutexLock lock(&mutex_);
    if (last_ && placement.epoch() <= last_->epoch()) {
      return absl::AbortedError(
          fmt::format("a placement of epoch {} came meanwhile", last_->epoch()));
    }
  }
  return discovery::PutDocument(*options_.etcd, kKey, placement::ToJson(placement), revision,
                                election_.get(), stopper_)
      .status();
}

void PlacementSource::CollectTo(telemetry::Samples& samples) const {
  if (source_ == nullptr) return;
  const discovery::SourceHealth health = source_->health();
  samples.Gauge(telemetry::kRouterPlacementSourceOk, health.status.ok() ? 1 : 0);
  samples.Counter(telemetry::kRouterPlacementsRefused, static_cast<double>(health.refused));
}

}  // namespace switchyard::router
