// Memory that experts are computed with from: the host's, into which the system maps the
// checkpoint, or a device's. Tiers decides who lies there.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "expert-worker/store/expert_store.h"

namespace switchyard::worker {

// Thread-safe. Ids are of experts that are or were held.
class ExpertMemory {
 public:
  virtual ~ExpertMemory() = default;

  virtual uint64_t bytes(const ExpertWeights& weights) const = 0;  // that an expert takes there
  virtual uint64_t held_bytes() const = 0;    // that all do which the worker holds
  virtual uint64_t expert_bytes() const = 0;  // of one, the mean
  // Whether there may be more in it than was said, while it is computed with.
  virtual bool elastic() const = 0;
  // Brings it there; nothing where it is there already. UNAVAILABLE where that is not the expert's
  // fault: who computes with it will meet the same, and say so.
  virtual absl::Status Populate(ExpertId id) = 0;
  // The same for one that has no room to stay, for whoever computes with it next.
  virtual absl::Status Reach(ExpertId id) = 0;
  // The same for one that was just read from its file.
  virtual absl::Status Keep(ExpertId id) = 0;
  virtual void Evict(ExpertId id) = 0;
};

// What is held is mapped; its pages come when they are asked for, and may be there anyway.
class HostMemory final : public ExpertMemory {
 public:
  explicit HostMemory(const ExpertStore& store) : store_(store) {}

  uint64_t bytes(const ExpertWeights& weights) const override { return weights.bytes(); }
  uint64_t held_bytes() const override { return store_.bytes(); }
  uint64_t expert_bytes() const override { return store_.expert_bytes(); }
  bool elastic() const override { return true; }
  absl::Status Populate(ExpertId id) override { return store_.Populate(id); }
  absl::Status Reach(ExpertId id) override { return store_.Populate(id); }
  absl::Status Keep(ExpertId) override { return absl::OkStatus(); }
  void Evict(ExpertId id) override { store_.Evict(id); }

 private:
  const ExpertStore& store_;
};

}  // namespace switchyard::worker
