// A router's weights and KV cache in the memory of a CUDA device, and the streams that compute with
// them (services/kernels/cuda/backbone_abi.h).
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "router/device/pack_backbone.h"
#include "services/device/cuda.h"
#include "services/device/device_experts.h"

namespace switchyard::router {

struct DestroyCudaStream {
  const SyCudaBackboneApi* api = nullptr;
  void operator()(SyCudaBackbone* stream) const { api->destroy(stream); }
};
using CudaStream = std::unique_ptr<SyCudaBackbone, DestroyCudaStream>;

class DeviceBackbone {
 public:
  // Copies the weights, which are not looked at afterwards; `positions` is how many a sequence may
  // have. Experts that lie on the device are computed there, without a dispatcher; they stay there.
  // INVALID_ARGUMENT names what the device does not take, RESOURCE_EXHAUSTED says that they do not
  // fit, FAILED_PRECONDITION that the plugin is of another version.
  static absl::StatusOr<std::unique_ptr<DeviceBackbone>> Load(
      std::shared_ptr<const device::Cuda> cuda, const ModelSpec& spec, const RouterWeights& weights,
      int64_t positions, const device::DeviceExperts* experts = nullptr);

  // Of the device's memory beside weights and cache, for steps of up to so many rows, logits among
  // them, in two micro-batches.
  static absl::StatusOr<uint64_t> StepBytes(const device::Cuda& cuda, const ModelSpec& spec,
                                            int64_t positions, int64_t rows, int64_t logits,
                                            const SyCudaFfnSpec* experts = nullptr);

  const std::shared_ptr<const device::Cuda>& cuda() const { return cuda_; }
  const SyCudaBackboneApi& api() const { return *api_; }
  bool has_experts() const { return packed_.spec.experts.hidden > 0; }
  // Once, before the first stream. RESOURCE_EXHAUSTED where there is no room.
  absl::Status AllocateCache(int64_t blocks);
  // Lives no longer than this.
  absl::StatusOr<CudaStream> NewStream() const;

 private:
  DeviceBackbone(std::shared_ptr<const device::Cuda> cuda, const SyCudaBackboneApi* api,
                 const ModelSpec& spec)
      : cuda_(std::move(cuda)), api_(api), spec_(spec) {}

  void Take(const device::DeviceExperts& experts);

  const std::shared_ptr<const device::Cuda> cuda_;
  const SyCudaBackboneApi* const api_;
  const ModelSpec& spec_;
  std::vector<device::CudaBlock> weights_;
  device::CudaBlock cache_;
  device::DeviceExperts experts_;
  PackedBackbone packed_;
};

}  // namespace switchyard::router
