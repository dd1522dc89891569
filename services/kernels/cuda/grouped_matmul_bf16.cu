#include "services/kernels/cuda/grouped_matmul_instances.cuh"

namespace switchyard::cuda {

template cudaError_t PrepareGroupedMatMul<Format::kBf16>();
template cudaError_t LaunchGroupedMatMul<Format::kBf16>(int, Epilogue, const MatMulArgs&, int,
                                                        cudaStream_t);

}  // namespace switchyard::cuda
