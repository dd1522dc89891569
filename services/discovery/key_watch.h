// Follows one key of etcd, or all that begin alike: reads them, then watches from the revision that
// was read. Whenever the watch ends (etcd restarts, loses its leader, has compacted what we missed)
// they are read again, so that no change between is missed. Until then the last ones stay.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "services/discovery/etcd_client.h"

namespace switchyard::discovery {

// Thread-safe. Its end waits for a callback that runs, and none comes afterwards.
class KeyWatch {
 public:
  static constexpr int64_t kKeysMax = 10'000;  // more are not read

  using Keys = std::map<std::string, etcd::KeyValue>;
  // Called on the watch's thread: once they were read, and after each change.
  using Changed = std::function<void(const Keys&)>;

  // `range_end` empty: the key alone; PrefixEnd(key): all that begin with it.
  KeyWatch(std::shared_ptr<EtcdClient> client, std::string key, std::string range_end,
           Changed changed);
  ~KeyWatch();

 private:
  void Run();
  // Until the watch ends, and why.
  absl::Status Follow();
  absl::StatusOr<int64_t> Read();  // the revision
  absl::Status Watch(const EtcdClient::Server& server, int64_t from);
  void Apply(const etcd::WatchResponse& response);

  const std::shared_ptr<EtcdClient> client_;
  const std::string key_, range_end_;
  const Changed changed_;
  Stopper stopper_;

  // Of the thread.
  Keys keys_;
  bool told_ = false;  // anything
  absl::Duration backoff_;
  std::thread thread_;
};

}  // namespace switchyard::discovery
