// The feed-forward of many experts over the rows of a frame, on a stream of its own: rows and lists
// are copied in, gate and up with the activation, down, sums, and a copy out. Several of them on
// one device overlap each other's copies and products.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "services/kernels/cuda/context.h"
#include "services/kernels/cuda/expert_products.h"

struct SyCudaFfn {
  SyCudaFfn(SyCudaContext& context, const SyCudaFfnSpec& spec);
  ~SyCudaFfn();

  int Prepare(SyCudaError* error);
  int Begin(const SyCudaFrameSize& size, SyCudaFrame* frame, SyCudaError* error);
  int Rows(int32_t first, int32_t count, const void* rows, SyCudaError* error);
  int Compute(const SyCudaRun* runs, int32_t count, SyCudaError* error);
  int Finish(const SyCudaOut* outs, int32_t count, SyCudaError* error);
  int Poll(int32_t* done, SyCudaError* error);
  int Wait(SyCudaError* error);
  size_t pair_bytes() const;
  cudaStream_t stream() const { return stream_; }  // for measurements

 private:
  // Where the parts of a frame lie, in bytes from the first of its pinned buffer and of the
  // device's alike: one copy takes all but the rows.
  struct Layout {
    size_t x = 0, gather = 0, sum_first = 0, entry_pair = 0, entry_weight = 0, sum_at = 0,
           copy_pair = 0, copy_at = 0;
    size_t runs = 0;      // [pairs] RowRun, then
    size_t matrices = 0;  // [pairs] Matrix of gate and up, [pairs] of down
    size_t bytes = 0;
  };

  void AddMatrices(const SyCudaRun* runs, int32_t count);
  // Cuts runs into pieces, those of a batch together.
  void AddPieces(const SyCudaRun* runs, int32_t count);
  void AddPieces(const SyCudaRun* runs, int32_t count, int rows, int class_of_rows);
  cudaError_t CopyIn(int first_run, int runs, int first_matrix, int matrices);
  int Multiply(int64_t first_pair, int64_t end_pair, SyCudaError* error);

  SyCudaContext& context_;
  const SyCudaFfnSpec spec_;
  switchyard::cuda::ExpertProducts products_;
  cudaStream_t stream_ = nullptr;
  SyCudaFrameSize size_ = {};
  Layout at_;
  bool copied_ = false;          // the frame's own part
  int runs_ = 0, matrices_ = 0;  // of this frame, so far
  int64_t pairs_ = 0;
  std::vector<switchyard::cuda::ExpertProducts::Batch> batches_;  // of the last runs
  switchyard::cuda::DeviceBuffer pinned_{SY_CUDA_PINNED}, in_{SY_CUDA_DEVICE}, out_{SY_CUDA_DEVICE};
};
