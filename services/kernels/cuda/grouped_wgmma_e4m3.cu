#include "services/kernels/cuda/grouped_wgmma_instances.cuh"

namespace switchyard::cuda {

template cudaError_t PrepareGroupedWgmma<Format::kE4M3>();
template cudaError_t LaunchGroupedWgmma<Format::kE4M3>(int, Epilogue, const GroupedArgs&, int, int,
                                                       cudaStream_t);

}  // namespace switchyard::cuda
