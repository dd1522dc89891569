// Experts in a CUDA device's memory. They come there from pinned memory of the host, where they lie
// packed as the device takes them, and there from the mapped checkpoint: what was packed once is
// kept as long as there is room, so that bringing it back is one copy.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "expert-worker/store/expert_memory.h"
#include "services/device/cuda.h"
#include "services/kernels/cuda/abi.h"
#include "services/model/spec.h"

namespace switchyard::worker {

struct DeviceMemoryCounters {
  uint64_t packed = 0, uploaded = 0;  // experts, so far
  uint64_t uploaded_bytes = 0;
  uint64_t upload_us = 0;     // of all threads that waited for copies
  uint64_t pinned_bytes = 0;  // now
};

// Thread-safe. All experts of a model that a device computes are of one form.
class DeviceMemory final : public ExpertMemory {
 public:
  // `store` outlives it. At most `memory_bytes` of experts and two more are on the device (0: as
  // many as it has room for), `pinned_bytes` of packed ones on the host, and always two.
  // INVALID_ARGUMENT where those that are held now are not of one form that devices take.
  static absl::StatusOr<std::unique_ptr<DeviceMemory>> Create(
      const ModelSpec& model, const ExpertStore& store, std::shared_ptr<const device::Cuda> cuda,
      uint64_t memory_bytes, uint64_t pinned_bytes);

  // The expert's block on the device, which stays until Unpin; brought there if need be.
  // RESOURCE_EXHAUSTED where there is no room: `wait`, for who has none pinned, waits for it.
  absl::StatusOr<const void*> Pin(ExpertId id, bool wait);
  void Unpin(ExpertId id);
  // Of experts; nothing before one was there.
  std::optional<SyCudaFfnSpec> spec() const;
  DeviceMemoryCounters counters() const;
  const std::shared_ptr<const device::Cuda>& cuda() const { return cuda_; }

  uint64_t bytes(const ExpertWeights& weights) const override;
  uint64_t held_bytes() const override;
  uint64_t expert_bytes() const override;
  bool elastic() const override { return false; }
  absl::Status Populate(ExpertId id) override;
  // Into the page cache, from where Pin takes it.
  absl::Status Reach(ExpertId id) override;
  absl::Status Keep(ExpertId id) override { return Populate(id); }
  void Evict(ExpertId id) override;

 private:
  struct Resident {
    device::CudaBlock block;  // null while it comes
    int pins = 0;
    bool leaves = false;  // once nobody has it pinned
  };
  struct Packed {
    device::CudaBlock block;
    std::optional<size_t> holds;  // index of the expert
    uint64_t used = 0;            // when, in uses
    bool busy = false;
  };

  DeviceMemory(const ModelSpec& model, const ExpertStore& store,
               std::shared_ptr<const device::Cuda> cuda, uint64_t memory_bytes,
               uint64_t pinned_bytes)
      : model_(model),
        store_(store),
        cuda_(std::move(cuda)),
        memory_bytes_(memory_bytes),
        pinned_bytes_(pinned_bytes) {}

  size_t Index(ExpertId id) const {
    return static_cast<size_t>(id.layer) * static_cast<size_t>(store_.experts()) +
           static_cast<size_t>(id.expert);
  }
  // Brings it there; `pin` holds it there.
  absl::StatusOr<const void*> Bring(ExpertId id, bool pin, bool wait);
  absl::StatusOr<device::CudaBlock> Upload(ExpertId id, bool wait);
  absl::StatusOr<device::CudaBlock> TakeBlock(bool wait);
  absl::Status CopyTo(const device::CudaBlock& block, ExpertId id, const ExpertWeights& weights);
  bool full() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Drop(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A block of pinned memory that is the caller's while it is busy; of this expert if there is one.
  absl::StatusOr<Packed*> TakePacked(size_t index);
  // The one to take, which may be the expert's own; null while all are busy.
  Packed* Oldest(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of the first expert, and whether this one is alike.
  absl::Status CheckForm(const ExpertWeights& weights);

  const ModelSpec model_;
  const ExpertStore& store_;
  const std::shared_ptr<const device::Cuda> cuda_;
  const uint64_t memory_bytes_;
  const uint64_t pinned_bytes_;

  mutable absl::Mutex mutex_;
  std::optional<SyCudaFfnSpec> spec_ ABSL_GUARDED_BY(mutex_);
  uint64_t block_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unordered_map<size_t, Resident> residents_ ABSL_GUARDED_BY(mutex_);
  std::vector<device::CudaBlock> free_ ABSL_GUARDED_BY(mutex_);  // on the device
  uint64_t blocks_ ABSL_GUARDED_BY(mutex_) = 0;                  // there, with the free ones
  std::vector<std::unique_ptr<Packed>> packed_ ABSL_GUARDED_BY(mutex_);
  uint64_t uses_ ABSL_GUARDED_BY(mutex_) = 0;
  DeviceMemoryCounters counters_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace switchyard::worker
