// Router and worker in one process: row buffers change hands by reference and the worker computes
// inside Poll, on the engine thread. No frames, no credits, no thread hop.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
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
  std::shared_ptr<const pb::Hello> peer() const override;
  uint64_t generation() const override {
    return ((static_cast<uint64_t>(state()) + 1) << 32) + worker_.holds_version();
  }
  LinkStats stats() const override;
  bool suspect() const override { return false; }

  size_t max_part_bytes() const override { return size_t{128} << 20; }
  bool borrows_rows() const override { return true; }
  absl::Status Send(Call part) override;
  void Cancel(uint64_t call_id, uint32_t attempt) override;
  void Assign(pb::Assign assign) override { worker_.OnAssign(assign); }
  void AckEpoch(uint64_t epoch) override;
  void Prefetch(pb::Prefetch prefetch) override { worker_.OnPrefetch(prefetch); }
  bool Computing(uint64_t, uint32_t) override { return true; }  // in every Poll
  bool Poll(std::vector<LinkEvent>* events) override;

 private:
  struct Sink;

  const std::string name_;
  CallHandler& worker_;
  mutable absl::Mutex mutex_;
  // As of this version of what the worker holds.
  mutable uint64_t version_ ABSL_GUARDED_BY(mutex_);
  mutable std::shared_ptr<const pb::Hello> peer_ ABSL_GUARDED_BY(mutex_);
  const absl::Status refused_;
  const std::shared_ptr<Sink> sink_;
  std::atomic<uint64_t> frames_sent_ = 0, frames_received_ = 0, bytes_sent_ = 0,
                        bytes_received_ = 0;
};

}  // namespace switchyard::expertwire
