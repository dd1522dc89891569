// Experts on this CPU, used where they lie in memory.
#pragma once

#include "expert-worker/compute/backend.h"
#include "services/tensor/buffer.h"

namespace switchyard::worker {

class CpuBackend final : public Backend {
 public:
  CpuBackend(const ModelSpec& spec, DType activations, const kernels::Compute& compute);

  // Computes it all.
  void Start(const Batch& batch, std::span<expertwire::Answer> answers) override;
  absl::Status Finish() override { return absl::OkStatus(); }
  size_t bytes_a_pair() const override { return ffn_.bytes_a_pair() + row_bytes_; }

 private:
  kernels::Rows GatherRows(std::span<const Pending> parts);
  void WriteAnswer(const expertwire::Call& call, const PartWork& work, const float* y,
                   expertwire::Answer* answer);
  void WriteSums(const expertwire::Call& call, const PartWork& work, const float* y, uint32_t sums,
                 std::byte* out);
  void WriteSum(const expertwire::Call& call, const PartWork& work,
                std::span<const uint32_t> entries, const float* y, std::byte* out);

  const int64_t hidden_;
  const DType dtype_;
  const size_t row_bytes_;
  const kernels::Compute& compute_;
  ExpertFfn ffn_;
  expertwire::RowBufferPool buffers_;
  AlignedBuffer rows_;  // of all parts, where there are several
};

}  // namespace switchyard::worker
