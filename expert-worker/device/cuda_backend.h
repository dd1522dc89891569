// Experts on a CUDA device: a batch's rows go there in one copy, its answers come back in one.
#pragma once

#include <vector>

#include "expert-worker/compute/backend.h"
#include "expert-worker/device/device_memory.h"
#include "services/expertwire/row_buffer.h"

namespace switchyard::worker {

class CudaBackend final : public Backend {
 public:
  // `memory` outlives it.
  CudaBackend(const ModelSpec& spec, DeviceMemory& memory);
  ~CudaBackend() override;

  absl::Status Compute(const Batch& batch, std::span<expertwire::Answer> answers) override;
  size_t bytes_a_pair() const override;

 private:
  // Where not all experts have room at once, some after the other.
  absl::Status ComputeFrame(const Batch& batch, std::span<const expertwire::Answer> answers,
                            const SyCudaFrameSize& size);
  absl::Status Begin(const Batch& batch, std::span<const expertwire::Answer> answers,
                     const SyCudaFrameSize& size);
  absl::Status PinRuns(const Batch& batch, size_t first);
  void Unpin();
  absl::Status MakeOut(size_t bytes);
  SyCudaFrameSize SizeOf(const Batch& batch, std::span<const expertwire::Answer> answers);
  void Fill(const Batch& batch, std::span<const expertwire::Answer> answers,
            const SyCudaFrame& frame) const;

  const int64_t hidden_;
  DeviceMemory& memory_;
  const SyCudaApi& api_;
  SyCudaFfn* ffn_ = nullptr;  // once an expert was there
  std::vector<ExpertId> pinned_;
  std::vector<SyCudaRun> runs_;
  std::vector<size_t> out_at_;  // [parts] of a payload among those of all
  device::CudaBlock out_;       // pinned
  size_t out_bytes_ = 0;        // its size
  expertwire::RowBufferPool buffers_;
};

}  // namespace switchyard::worker
