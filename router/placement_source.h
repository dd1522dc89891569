// Where a router's placement comes from, and where one that it makes itself goes: a file, a key of
// etcd that all its routers follow, or, of a router that has neither, itself.
//
// Thread-safe, but for Publish, which one thread may call.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "services/discovery/document_source.h"
#include "services/discovery/election.h"
#include "services/discovery/etcd_client.h"
#include "services/discovery/stopper.h"
#include "services/telemetry/metrics.h"
#include "switchyard/v1/placement.pb.h"

namespace switchyard::discovery {
class DocumentWatch;
}

namespace switchyard::router {

struct PlacementSourceOptions {
  std::string from;       // a file; "etcd": PREFIX/placement there; empty: see balances
  bool balances = false;  // this router may make placements: etcd is followed where there is one
  std::string router_id;  // as a candidate for that
  std::shared_ptr<discovery::EtcdClient> etcd;  // null: none
};

class PlacementSource {
 public:
  // An error says why it cannot be used.
  using Take = std::function<absl::Status(const v1::Placement& placement)>;

  // What Create refuses, before anything is loaded: flags that do not fit, a file that cannot be
  // read or is no placement.
  static absl::Status Check(const PlacementSourceOptions& options);
  // Begins to follow. A file is read at once, and what is wrong with it ends this; later versions
  // that are wrong are logged and passed over. INVALID_ARGUMENT names flags that do not fit.
  static absl::StatusOr<std::unique_ptr<PlacementSource>> Create(PlacementSourceOptions options,
                                                                 Take take);
  ~PlacementSource();

  // Whether it falls to this router to make placements, and whether nobody else can know of them.
  bool leads() const;
  bool sole() const { return options_.etcd == nullptr; }
  // For all routers of etcd, or for this one. ABORTED if another router was faster.
  absl::Status Publish(const v1::Placement& placement);
  // Ends a Publish under way.
  void Stop() { stopper_.Stop(); }
  void CollectTo(telemetry::Samples& samples) const;

 private:
  PlacementSource(PlacementSourceOptions options, Take take)
      : options_(std::move(options)), take_(std::move(take)) {}
  absl::Status Begin();
  absl::Status Accept(const v1::Placement& placement);

  const PlacementSourceOptions options_;
  const Take take_;
  discovery::Stopper stopper_;

  absl::Mutex mutex_;
  std::optional<v1::Placement> last_ ABSL_GUARDED_BY(mutex_);  // that was taken

  std::unique_ptr<discovery::Election> election_;
  discovery::DocumentWatch* in_etcd_ = nullptr;  // what source_ is, if that
  std::unique_ptr<discovery::DocumentSource> source_;
};

}  // namespace switchyard::router
