// Router and worker in one process: row buffers change hands by reference and the worker computes
// inside Poll, on the engine thread. No frames, no credits, no thread hop.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "services/expertwire/expert_link.h"

namespace switchyard::expertwire {

class LocalLink : public ExpertLink {
 public:
  // `worker` outlives the link. The hellos are compared as on any other link.
  LocalLink(std::string name, const pb::Hello& router, CallHandler& worker);
  ~LocalLink() override;

  const std::string& name() const override { return name_; }
  LinkState state() const override;
  absl::Status why() const override;
  std::shared_ptr<const pb::Hello> peer() const override { return peer_; }
  uint64_t generation() const override { return static_cast<uint64_t>(state()) + 1; }
  LinkStats stats() const override;

  size_t max_part_bytes() const override { return size_t{128} << 20; }
  bool borrows_rows() const override { return true; }
  absl::Status Send(Call part) override;
  void Cancel(uint64_t call_id, uint32_t attempt) override;
  bool Poll(std::vector<LinkEvent>* events) override;

 private:
  struct Sink;

  const std::string name_;
  CallHandler& worker_;
  const std::shared_ptr<const pb::Hello> peer_;
  const absl::Status refused_;
  const std::shared_ptr<Sink> sink_;
  std::atomic<uint64_t> frames_sent_ = 0, frames_received_ = 0, bytes_sent_ = 0,
                        bytes_received_ = 0;
};

}  // namespace switchyard::expertwire
