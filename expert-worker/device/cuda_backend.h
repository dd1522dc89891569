// Experts on a CUDA device: a batch's rows go there as they came, and its answers come back to
// where they are sent from, while other batches are computed.
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

  void Start(const Batch& batch, std::span<expertwire::Answer> answers) override;
  bool Done() override;
  absl::Status Finish() override;
  size_t bytes_a_pair() const override;

 private:
  // Where not all experts have room at once, some after the other: all but the last are waited for.
  absl::Status ComputeFrame();
  absl::Status ComputeRuns(bool first, bool last);
  absl::Status Begin();
  absl::Status PinRuns(size_t first);
  void Unpin();
  void TakePayloads();
  void WaitForDevice(absl::Status* status);
  SyCudaFrameSize SizeOf();
  absl::Status SendRows(const SyCudaFrame& frame);
  void Fill(const SyCudaFrame& frame) const;

  const int64_t hidden_;
  DeviceMemory& memory_;
  const SyCudaApi& api_;
  SyCudaFfn* ffn_ = nullptr;  // once an expert was there
  expertwire::RowBufferPool buffers_;
  // Of the batch.
  Batch batch_;
  std::span<expertwire::Answer> answers_;
  absl::Status status_;
  bool on_device_ = false;
  std::vector<ExpertId> pinned_;
  std::vector<SyCudaRun> runs_;
  std::vector<size_t> out_at_;  // [parts] of a payload among the outputs of all
  std::vector<SyCudaOut> outs_;
};

}  // namespace switchyard::worker
