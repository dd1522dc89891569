#include "services/kernels/cuda/grouped_matmul_instances.cuh"

namespace switchyard::cuda {

template cudaError_t PrepareGroupedMatMul<Format::kI4>();
template cudaError_t LaunchGroupedMatMul<Format::kI4>(int, Epilogue, const MatMulArgs&, int,
                                                      cudaStream_t);

}  // namespace switchyard::cuda
