// A client of etcd's API v3 over gRPC: some unary calls, tried at one server after another, and
// what the streams of KeyWatch and KeptLease stand on. Losing etcd is an error here and an event in
// the log, never the end of anything: whoever asks keeps what it last knew.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "etcd/rpc.grpc.pb.h"
#include "services/discovery/stopper.h"
#include "services/security/tls.h"
#include "services/telemetry/metrics.h"
#include "switchyard/config/v1/common.pb.h"

namespace switchyard::discovery {

namespace etcd = ::etcdserverpb;

struct EtcdOptions {
  std::vector<std::string> urls;       // http://HOST:PORT or https://HOST:PORT, of one cluster
  std::string prefix = "/switchyard";  // of all our keys
  security::TlsFiles tls{.flags = "--etcd"};  // towards https
  absl::Duration timeout = absl::Seconds(2);  // of one call at one server
};

struct EtcdHealth {
  absl::Status status;        // of the last call or stream that ended
  absl::Duration silent_for;  // since the last word of etcd's; zero while a stream stands
  uint64_t errors = 0;        // calls and streams that failed
};

class EtcdClient {
 public:
  // INVALID_ARGUMENT names the flag; nothing is connected yet.
  static absl::StatusOr<std::shared_ptr<EtcdClient>> Create(EtcdOptions options);

  // Of a program's knobs; null where they name no etcd.
  static absl::StatusOr<std::shared_ptr<EtcdClient>> Create(const config::v1::EtcdKnobs& knobs);

  // "PREFIX/NAME".
  std::string Key(std::string_view name) const;

  // `stopper` ends them. UNAVAILABLE and DEADLINE_EXCEEDED of every server: of the last asked. A
  // write that failed so may have happened all the same.
  absl::StatusOr<etcd::RangeResponse> Range(const etcd::RangeRequest& request, Stopper& stopper);
  absl::StatusOr<etcd::PutResponse> Put(const etcd::PutRequest& request, Stopper& stopper);
  absl::StatusOr<etcd::TxnResponse> Txn(const etcd::TxnRequest& request, Stopper& stopper);
  absl::StatusOr<etcd::LeaseGrantResponse> Grant(const etcd::LeaseGrantRequest& request,
                                                 Stopper& stopper);
  absl::StatusOr<etcd::LeaseRevokeResponse> Revoke(const etcd::LeaseRevokeRequest& request,
                                                   Stopper& stopper);
  // One beat. NOT_FOUND if there is no such lease any more.
  absl::StatusOr<etcd::LeaseKeepAliveResponse> KeepAlive(int64_t lease, Stopper& stopper);

  // ---- for streams ----
  struct Server {
    std::string url;
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<etcd::KV::Stub> kv;
    std::unique_ptr<etcd::Watch::Stub> watch;
    std::unique_ptr<etcd::Lease::Stub> lease;
  };
  // The one that answered last. After a failure there the next is taken.
  const Server& server() const { return servers_[current_.load() % servers_.size()]; }
  void OnFailure(const Server& server, const absl::Status& why);
  void OnContact();
  // A stream stands while it lives.
  class Standing {
   public:
    explicit Standing(EtcdClient& client) : client_(client) { client_.OnStream(+1); }
    ~Standing() { client_.OnStream(-1); }
    Standing(const Standing&) = delete;
    Standing& operator=(const Standing&) = delete;

   private:
    EtcdClient& client_;
  };

  EtcdHealth health() const;
  void CollectTo(telemetry::Samples& samples) const;

 private:
  explicit EtcdClient(EtcdOptions options) : options_(std::move(options)) {}
  // `call(server, context)` gives a grpc::Status.
  template <typename Call>
  absl::Status Try(std::string_view what, Stopper& stopper, const Call& call);
  void OnStream(int change);

  const EtcdOptions options_;
  std::vector<Server> servers_;  // constant once created
  std::atomic<size_t> current_ = 0;

  mutable absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  absl::Time contact_ ABSL_GUARDED_BY(mutex_);
  int streams_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t errors_ ABSL_GUARDED_BY(mutex_) = 0;
  bool lost_ ABSL_GUARDED_BY(mutex_) = false;  // and said so
};

// The end of the range of all keys that begin with `prefix`.
std::string PrefixEnd(std::string prefix);

}  // namespace switchyard::discovery
