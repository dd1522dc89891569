// Rows on their way to and from a CUDA device, in memory that it copies from and to by itself.
#pragma once

#include <memory>
#include <utility>

#include "services/device/cuda.h"
#include "services/expertwire/row_buffer.h"

namespace switchyard::worker {

// Thread-safe.
class PinnedRows final : public expertwire::BlockSource {
 public:
  explicit PinnedRows(std::shared_ptr<const device::Cuda> cuda) : cuda_(std::move(cuda)) {}

  expertwire::MemoryKind kind() const override { return expertwire::MemoryKind::kPinned; }
  std::byte* Allocate(size_t bytes) override {
    void* block = nullptr;
    SyCudaError error = {};
    const int code = cuda_->api().allocate(cuda_->context(), SY_CUDA_PINNED, bytes, &block, &error);
    return code == SY_CUDA_OK ? static_cast<std::byte*>(block) : nullptr;
  }
  void Free(std::byte* block) override {
    cuda_->api().release(cuda_->context(), SY_CUDA_PINNED, block);
  }

 private:
  const std::shared_ptr<const device::Cuda> cuda_;
};

}  // namespace switchyard::worker
