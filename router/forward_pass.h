// What a router computes itself: a checkpoint's backbone, the memory of its KV cache, and the
// runner of its steps, on the CPU or on a CUDA device.
//
// Not thread-safe, but for failure.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "router/device/cuda_decoder.h"
#include "router/device/device_backbone.h"
#include "router/graph/decoder.h"
#include "router/graph/weights.h"
#include "router/kv/kv_storage.h"
#include "router/kv_plan.h"
#include "router/router.h"
#include "services/kernels/kernels.h"
#include "services/model/memory_plan.h"

namespace switchyard::router {

// How its tensors are stored. The model outlives it.
StoredTensorOf StoredIn(const OpenedModel& model);
DType KvDType(const RouterOptions& options);

// Of a device's memory that others share.
struct DeviceShare {
  uint64_t bytes = 0;     // all that a router takes
  uint64_t kv_bytes = 0;  // of them its KV cache
};

class ForwardPass {
 public:
  // Of `free` bytes of options.cuda, where all experts of the model are computed, too.
  static absl::StatusOr<DeviceShare> ShareOf(const RouterOptions& options, const OpenedModel& model,
                                             uint64_t free);
  // What is refused before weights are read: options that a device does not take, memory that
  // cannot hold the weights, those of others in this process and the KV cache of a sequence.
  static absl::Status Check(const RouterOptions& options, const OpenedModel& model,
                            uint64_t other_weight_bytes);
  // Loads the weights. Options, shared and model outlive it.
  static absl::StatusOr<std::unique_ptr<ForwardPass>> Load(const RouterOptions& options,
                                                           const RouterShared& shared,
                                                           const OpenedModel& model);

  // Once. The dispatcher outlives it.
  absl::Status MakeRunner(Dispatcher& dispatcher);
  ModelRunner& runner() const;

  const kernels::Compute& compute() const { return *compute_; }  // of this CPU
  const KvPlan& plan() const { return plan_; }
  // Of its own products: "cuda-sm80-mma", "avx512bf16".
  std::string arithmetic() const;
  // Places for a token's experts in a step's trace.
  int routing_width() const;
  // Null where the gate's own choice stands.
  const RoutingPolicy* routing() const { return cpu_ == nullptr ? nullptr : cpu_->routing(); }
  // Why nothing can be computed any more: a device that is lost; else OK. Any thread may ask.
  absl::Status failure() const;

 private:
  ForwardPass(const RouterOptions& options, const OpenedModel& model)
      : options_(options), model_(model) {}
  absl::Status LoadCompute(const RouterShared& shared);
  absl::Status PlanHost(uint64_t other_weight_bytes);
  absl::Status LoadDevice(const device::DeviceExperts* experts);

  const RouterOptions& options_;
  const OpenedModel& model_;
  std::unique_ptr<kernels::ThreadPool> own_pool_;
  std::unique_ptr<kernels::Compute> compute_;
  RouterWeights weights_;
  KvPlan plan_;
  std::unique_ptr<KvStorage> kv_;             // on the CPU
  std::unique_ptr<DeviceBackbone> backbone_;  // on a device
  std::unique_ptr<Decoder> cpu_;
  std::unique_ptr<CudaDecoder> cuda_;
};

}  // namespace switchyard::router
