// Which instance of GroupedMatMul a product takes. Each format's are compiled in a file of its own.
#pragma once

#include "services/kernels/cuda/grouped_matmul.cuh"
#include "services/kernels/cuda/launch.cuh"

namespace switchyard::cuda {

inline constexpr int kMostRows = 64;  // of a RowRun

// The rows that a block takes where no expert has more than `most`: results do not depend on it.
constexpr int RowsABlock(int most) {
  return most <= 8 ? 8 : most <= 16 ? 16 : most <= 32 ? 32 : 64;
}

// Once for each device, before the first launch.
template <Format kFormat>
cudaError_t PrepareGroupedMatMul();
// `rows` is one of RowsABlock's; at most 65,535 runs.
template <Format kFormat>
cudaError_t LaunchGroupedMatMul(int rows, Epilogue epilogue, const MatMulArgs& args, int runs,
                                cudaStream_t stream);

}  // namespace switchyard::cuda
