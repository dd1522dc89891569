#include "router/device/device_backbone.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "router/kv/kv_storage.h"
#include "services/base/status.h"
#include "services/checkpoint/progress.h"

namespace switchyard::router {
namespace {

constexpr size_t kStagingBytes = size_t{16} << 20;

// Copies to a device by way of pinned memory.
class Uploader {
 public:
  Uploader(std::shared_ptr<const device::Cuda> cuda, std::vector<device::CudaBlock>* blocks)
      : cuda_(std::move(cuda)), blocks_(blocks) {}

  absl::StatusOr<void*> Put(std::span<const std::byte> bytes) {
    if (!staging_) {
      SY_ASSIGN_OR_RETURN(staging_,
                          device::CudaBlock::Allocate(cuda_, SY_CUDA_PINNED, kStagingBytes));
    }
    SY_ASSIGN_OR_RETURN(
        device::CudaBlock block,
        device::CudaBlock::Allocate(cuda_, SY_CUDA_DEVICE, std::max<size_t>(bytes.size(), 1)));
    for (size_t at = 0; at < bytes.size(); at += kStagingBytes) {
      const size_t count = std::min(kStagingBytes, bytes.size() - at);
      std::memcpy(staging_.data(), bytes.data() + at, count);
      SyCudaError error = {};
      const int code =
          cuda_->api().upload(cuda_->context(), block.data() + at, staging_.data(), count, &error);
      SY_RETURN_IF_ERROR(device::ToStatus(code, error));
    }
    void* const at = block.data();
    blocks_->push_back(std::move(block));
    return at;
  }

 private:
  const std::shared_ptr<const device::Cuda> cuda_;
  std::vector<device::CudaBlock>* const blocks_;
  device::CudaBlock staging_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceBackbone>> DeviceBackbone::Load(
    std::shared_ptr<const device::Cuda> cuda, const ModelSpec& spec, const RouterWeights& weights,
    int64_t positions, const device::DeviceExperts* experts) {
  SY_ASSIGN_OR_RETURN(const SyCudaBackboneApi* const api, cuda->backbone_api());
  std::unique_ptr<DeviceBackbone> backbone(new DeviceBackbone(cuda, api, spec));
  Uploader uploader(cuda, &backbone->weights_);
  absl::StatusOr<PackedBackbone> packed =
      PackBackbone(spec, weights,
                   {.put = [&](std::span<const std::byte> bytes) { return uploader.Put(bytes); },
                    .positions = positions});
  if (!packed.ok()) return Annotate(packed.status(), "the router's weights on " + cuda->name());
  backbone->packed_ = *std::move(packed);
  if (experts != nullptr) backbone->Take(*experts);
  // Says now what the kernels do not take. Nothing is computed before there is a cache.
  PlaceCache(spec, backbone->weights_.front().data(), 0, &backbone->packed_);
  SY_RETURN_IF_ERROR(backbone->NewStream().status());
  return backbone;
}

absl::StatusOr<uint64_t> DeviceBackbone::StepBytes(const device::Cuda& cuda, const ModelSpec& spec,
                                                   int64_t positions, int64_t rows, int64_t logits,
                                                   const SyCudaFfnSpec* experts) {
  SY_ASSIGN_OR_RETURN(const SyCudaBackboneApi* const api, cuda.backbone_api());
  SyCudaBackboneSpec sizes = SizesOf(spec, positions);
  if (experts != nullptr) sizes.experts = *experts;
  const int inner = std::max(spec.dense_intermediate, spec.experts.shared_intermediate);
  // The first micro-batch takes all rows where there is but one sequence; the second nearly may.
  return 2 * api->step_bytes(cuda.context(), &sizes, inner, static_cast<int32_t>(rows),
                             static_cast<int32_t>(std::min(rows, logits)));
}

void DeviceBackbone::Take(const device::DeviceExperts& experts) {
  experts_ = experts;
  packed_.spec.experts = experts_.ffn;
  packed_.spec.experts_per_group = spec_.experts_per_group();
  for (size_t l = 0; l < packed_.layers.size(); ++l) {
    if (!experts_.blocks[l].empty()) packed_.layers[l].experts = experts_.blocks[l].data();
  }
}

absl::Status DeviceBackbone::AllocateCache(int64_t blocks) {
  const auto bytes = static_cast<size_t>(DeviceKvBytes(spec_, blocks));
  absl::StatusOr<device::CudaBlock> cache =
      device::CudaBlock::Allocate(cuda_, SY_CUDA_DEVICE, bytes);
  if (!cache.ok()) return Annotate(cache.status(), "the KV cache on " + cuda_->name());
  cache_ = *std::move(cache);
  PlaceCache(spec_, cache_.data(), blocks, &packed_);
  return absl::OkStatus();
}

absl::StatusOr<CudaStream> DeviceBackbone::NewStream() const {
  SyCudaBackbone* stream = nullptr;
  SyCudaError error = {};
  const int code =
      api_->create(cuda_->context(), &packed_.spec, packed_.layers.data(), &stream, &error);
  if (code == SY_CUDA_INVALID) {
    return InvalidArgument("{} does not compute this model: {}", cuda_->name(), error.text);
  }
  SY_RETURN_IF_ERROR(device::ToStatus(code, error, cuda_->name()));
  return CudaStream(stream, {api_});
}

}  // namespace switchyard::router
