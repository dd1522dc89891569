#include "services/discovery/key_watch.h"

#include <algorithm>
#include <utility>

#include "services/base/logging.h"
#include "services/base/status.h"
#include "services/rpc/status_map.h"

namespace switchyard::discovery {
namespace {

constexpr absl::Duration kBackoffMin = absl::Milliseconds(50), kBackoffMax = absl::Seconds(2);

bool Same(const KeyWatch::Keys& a, const KeyWatch::Keys& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.first == y.first && x.second.mod_revision() == y.second.mod_revision() &&
           x.second.create_revision() == y.second.create_revision() &&
           x.second.value() == y.second.value();
  });
}

}  // namespace

KeyWatch::KeyWatch(std::shared_ptr<EtcdClient> client, std::string key, std::string range_end,
                   Changed changed)
    : client_(std::move(client)),
      key_(std::move(key)),
      range_end_(std::move(range_end)),
      changed_(std::move(changed)),
      backoff_(kBackoffMin) {
  thread_ = std::thread([this] { Run(); });
}

KeyWatch::~KeyWatch() {
  stopper_.Stop();
  thread_.join();
}

void KeyWatch::Run() {
  do {
    if (absl::Status why = Follow(); !stopper_.stopped()) {
      log::Debug("etcd: the watch of {} ended: {}", key_, ToStd(why.message()));
    }
    backoff_ = std::min(2 * backoff_, kBackoffMax);
  } while (stopper_.Pause(backoff_));
}

absl::Status KeyWatch::Follow() {
  SY_ASSIGN_OR_RETURN(const int64_t revision, Read());
  const EtcdClient::Server& server = client_->server();
  absl::Status why = Watch(server, revision + 1);
  // A compaction says nothing against the server.
  if (!stopper_.stopped() && !absl::IsOutOfRange(why)) client_->OnFailure(server, why);
  return why;
}

absl::StatusOr<int64_t> KeyWatch::Read() {
  etcd::RangeRequest request;
  request.set_key(key_);
  request.set_range_end(range_end_);
  request.set_limit(kKeysMax);
  SY_ASSIGN_OR_RETURN(const etcd::RangeResponse response, client_->Range(request, stopper_));
  if (response.more()) log::Warning("etcd: more than {} keys from {} on", kKeysMax, key_);
  Keys keys;
  for (const etcd::KeyValue& kv : response.kvs()) keys[kv.key()] = kv;
  if (!std::exchange(told_, true) || !Same(keys, keys_)) {
    keys_ = std::move(keys);
    changed_(keys_);
  }
  return response.header().revision();
}

absl::Status KeyWatch::Watch(const EtcdClient::Server& server, int64_t from) {
  grpc::ClientContext context;
  // A server that is cut off from the others ends the watch instead of falling silent.
  context.AddMetadata("hasleader", "true");
  const Stopper::Call scope(stopper_, context);
  const auto stream = server.watch->Watch(&context);
  etcd::WatchRequest request;
  request.mutable_create_request()->set_key(key_);
  request.mutable_create_request()->set_range_end(range_end_);
  request.mutable_create_request()->set_start_revision(from);
  absl::Status why;
  if (stream->Write(request)) {
    std::optional<EtcdClient::Standing> standing;
    etcd::WatchResponse response;
    while (stream->Read(&response)) {
      if (response.canceled()) {
        why = response.compact_revision() > 0
                  ? OutOfRange("compacted up to {}", response.compact_revision())
                  : Unavailable("etcd {}: {}", server.url, response.cancel_reason());
        break;
      }
      if (!standing) standing.emplace(*client_);
      client_->OnContact();
      backoff_ = kBackoffMin;
      Apply(response);
    }
  }
  if (!why.ok()) context.TryCancel();  // else it has ended by itself, and says why
  const absl::Status ended = rpc::FromGrpc(stream->Finish());
  if (!why.ok()) return why;
  return ended.ok() ? Unavailable("etcd {}: the watch ended", server.url)
                    : Annotate(ended, fmt::format("etcd {}: Watch", server.url));
}

void KeyWatch::Apply(const etcd::WatchResponse& response) {
  for (const etcd::Event& event : response.events()) {
    const std::string& key = event.kv().key();
    if (event.type() == etcd::Event::DELETE) {
      keys_.erase(key);
    } else if (keys_.size() < static_cast<size_t>(kKeysMax) || keys_.contains(key)) {
      keys_[key] = event.kv();
    }
  }
  if (response.events_size() > 0) changed_(keys_);
}

}  // namespace switchyard::discovery
