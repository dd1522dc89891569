// The weights of the experts placed on this worker, used where they lie in the mapped checkpoint.
// Experts come and go while others are computed with. What was found once stays valid as long as
// the store: an expert that goes leaves memory, not the address space.
//
// Find and the counts: any thread, without a lock. Load and Remove: one thread at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "services/checkpoint/tensor_source.h"
#include "services/model/spec.h"
#include "services/tensor/view.h"

namespace switchyard::worker {

struct ExpertId {
  int32_t layer = 0;
  int32_t expert = 0;
  friend bool operator==(const ExpertId&, const ExpertId&) = default;
};

// One expert. Either gate and up, or gate_up with interleaved columns.
struct ExpertWeights {
  WeightView gate, up;            // [intermediate, hidden]
  VectorView gate_bias, up_bias;  // [intermediate]
  WeightView gate_up;             // hidden to 2 * intermediate
  VectorView gate_up_bias;        // [2 * intermediate]
  WeightView down;                // intermediate to hidden
  VectorView down_bias;           // [hidden]

  uint64_t bytes() const;
};

struct LoadOptions {
  bool check_weights = true;  // for NaN and infinity, and by checksums
  // Called after so many bytes more were read; false: nobody wants the rest. May be null.
  std::function<bool(uint64_t bytes)> pace;
};

class ExpertStore {
 public:
  // Maps `held` ([experts]) of every MoE layer and nothing else. NOT_FOUND or INVALID_ARGUMENT
  // names the tensor that is missing or has another shape.
  static absl::StatusOr<std::unique_ptr<ExpertStore>> Open(
      const ModelSpec& spec, const std::vector<bool>& held,
      std::shared_ptr<checkpoint::TensorSource> source);

  // Null if it is not held here.
  const ExpertWeights* Find(int64_t layer, int64_t expert) const;
  // Whether the model has this expert.
  bool Exists(ExpertId id) const;
  uint64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }
  int64_t count() const { return count_.load(std::memory_order_relaxed); }
  uint64_t expert_bytes() const { return expert_bytes_; }  // of one, the mean of the model's
  int layers() const { return layers_; }
  int experts() const { return experts_; }

  // Reads an expert into memory and holds it. Errors are those of Open, DATA_LOSS where its bytes
  // cannot be read or are no numbers, CANCELLED by `pace`; it is not held then.
  absl::Status Load(ExpertId id, const LoadOptions& options);
  // Holds it no more and lets it leave memory.
  void Remove(ExpertId id);

  // Of an expert that is or was held; thread-safe.
  absl::Status Populate(ExpertId id) const;
  void Evict(ExpertId id) const;

 private:
  struct Slot {
    ExpertWeights weights;  // written once, before it is held for the first time
    bool bound = false;
    std::atomic<bool> held = false;
  };

  ExpertStore(const ModelSpec& spec, std::shared_ptr<checkpoint::TensorSource> source);
  Slot& At(ExpertId id) const {
    return slots_[static_cast<size_t>(id.layer) * static_cast<size_t>(experts_) +
                  static_cast<size_t>(id.expert)];
  }
  std::vector<checkpoint::TensorRange> RangesOf(ExpertId id) const;
  absl::Status Check(ExpertId id) const;
  // Maps the expert, with all of its layer where that is possible: the system has only so many
  // mappings, and neighbours share one.
  absl::Status Map(ExpertId id);
  absl::StatusOr<ExpertWeights> Bind(ExpertId id) const;
  absl::Status Hold(ExpertId id);
  void MeasureExperts();

  const ModelSpec spec_;
  const std::shared_ptr<checkpoint::TensorSource> source_;
  const int layers_;
  const int experts_;
  const std::unique_ptr<Slot[]> slots_;  // [layers, experts]
  std::vector<bool> tried_;              // [layers] to map whole
  uint64_t expert_bytes_ = 0;
  std::atomic<uint64_t> bytes_ = 0;
  std::atomic<int64_t> count_ = 0;
};

}  // namespace switchyard::worker
