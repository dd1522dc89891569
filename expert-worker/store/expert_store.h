// The weights of the experts placed on this worker, used where they lie in the mapped checkpoint.
// Immutable after Open; thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "services/checkpoint/tensor_source.h"
#include "services/model/spec.h"
#include "services/tensor/view.h"

namespace switchyard::worker {

// One expert. Either gate and up, or gate_up with interleaved columns.
struct ExpertWeights {
  WeightView gate, up;            // [intermediate, hidden]
  VectorView gate_bias, up_bias;  // [intermediate]
  WeightView gate_up;             // hidden to 2 * intermediate
  VectorView gate_up_bias;        // [2 * intermediate]
  WeightView down;                // intermediate to hidden
  VectorView down_bias;           // [hidden]
};

class ExpertStore {
 public:
  // Maps `held` ([experts]) of every MoE layer and nothing else. NOT_FOUND or INVALID_ARGUMENT
  // names the tensor that is missing or has another shape.
  static absl::StatusOr<ExpertStore> Open(const ModelSpec& spec, const std::vector<bool>& held,
                                          std::shared_ptr<checkpoint::TensorSource> source);

  // Null if it is not held here.
  const ExpertWeights* Find(int64_t layer, int64_t expert) const;
  uint64_t bytes() const { return bytes_; }
  int64_t count() const { return count_; }

 private:
  ExpertStore() = default;
  absl::Status Bind(const ModelSpec& spec, int layer, int expert);

  std::shared_ptr<checkpoint::TensorSource> source_;
  int64_t layers_ = 0;
  int64_t experts_ = 0;
  std::vector<ExpertWeights> weights_;  // [layers, experts]; without `down` where not held
  uint64_t bytes_ = 0;
  int64_t count_ = 0;
};

}  // namespace switchyard::worker
