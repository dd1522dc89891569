#include "services/kernels/cuda/grouped_matmul_instances.cuh"

namespace switchyard::cuda {

template cudaError_t PrepareGroupedMatMul<Format::kE2M1>();
template cudaError_t LaunchGroupedMatMul<Format::kE2M1>(int, Epilogue, const MatMulArgs&, int,
                                                        cudaStream_t);

}  // namespace switchyard::cuda
