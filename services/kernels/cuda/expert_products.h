// The products of many experts' feed-forward, for pairs of a row and an expert that stand together
// by expert: gate and up with the activation, then down. Whoever has the pairs says in which runs
// they are computed; a pair's bits do not depend on it.
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "services/kernels/cuda/context.h"
#include "services/kernels/cuda/expert_block.h"
#include "services/kernels/cuda/grouped_matmul.cuh"

namespace switchyard::cuda {

class ExpertProducts {
 public:
  // Runs on the device that are computed by one launch.
  struct Batch {
    int rows = 8;                        // that a run has at most: one of RowsARun's
    const RowRun* runs = nullptr;        // of the matrices below
    int count = 0;                       // at most 65,535; of no rows those behind *run_count
    const int32_t* run_count = nullptr;  // on the device; null: all
  };
  struct Pairs {
    const Matrix* gate_up = nullptr;  // on the device, as `down`
    const Matrix* down = nullptr;
    const uint16_t* x = nullptr;      // [rows, hidden] bf16
    const int32_t* gather = nullptr;  // [pairs]: row of x
    int64_t first = 0, end = 0;       // that are computed
  };

  ExpertProducts(SyCudaContext& context, const SyCudaFfnSpec& spec);

  // Once, before the first launch.
  int Prepare(SyCudaError* error);
  // Room for so many, before them.
  int Reserve(int64_t rows, int64_t pairs, SyCudaError* error);
  size_t BytesOf(int64_t rows, int64_t pairs) const;

  const ExpertBlock& block() const { return block_; }
  bool wgmma() const { return wgmma_; }
  // Of a run of an expert of which `left` pairs are left.
  int RowsARun(int left) const;

  // What there is to do with rows before their pairs are multiplied.
  cudaError_t TakeRows(const uint16_t* x, int64_t rows, cudaStream_t stream);
  cudaError_t Multiply(const Pairs& pairs, std::span<const Batch> batches, cudaStream_t stream);
  const float* y() const { return reinterpret_cast<const float*>(y_.data()); }  // [pairs, hidden]

  // Of an expert's block.
  Matrix GateUp(const void* block) const;
  Matrix Down(const void* block) const;

 private:
  // Rows e4m3 with scales, beside the bf16 that they were made of.
  struct Quantized {
    DeviceBuffer bytes{SY_CUDA_DEVICE}, scales{SY_CUDA_DEVICE};
  };

  bool rows_are_e4m3() const { return wgmma_ && block_.gate_up.format == Format::kE4M3; }
  cudaError_t Quantize(const void* x, int columns, int64_t first, int64_t rows, Quantized* to,
                       cudaStream_t stream);
  cudaError_t Launch(const MatMulArgs& args, const Quantized& rows, Epilogue epilogue,
                     const Batch& batch, cudaStream_t stream);

  SyCudaContext& context_;
  const SyCudaFfnSpec spec_;
  const ExpertBlock block_;
  // What experts are computed by follows from device and weights, never from the rows.
  const bool wgmma_;
  DeviceBuffer inner_{SY_CUDA_DEVICE}, y_{SY_CUDA_DEVICE};
  Quantized x_e4m3_, inner_e4m3_;
};

}  // namespace switchyard::cuda
