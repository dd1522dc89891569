// A real etcd of one member in a process of its own, on free ports of this host, with its data in a
// directory of its own; both end with it.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace switchyard {

class EtcdProcess {
 public:
  EtcdProcess();
  ~EtcdProcess();
  EtcdProcess(const EtcdProcess&) = delete;
  EtcdProcess& operator=(const EtcdProcess&) = delete;

  // Returns once it answers. After Stop again at the same address, with the same data.
  absl::Status Start();
  void Stop();  // SIGKILL

  const std::string& url() const { return url_; }

 private:
  absl::Status Launch();
  bool Answers() const;

  std::string dir_, url_, peer_url_;
  int pid_ = -1;
};

}  // namespace switchyard
