#include "services/kernels/cuda/grouped_wgmma_instances.cuh"

namespace switchyard::cuda {

template cudaError_t PrepareGroupedWgmma<Format::kBf16>();
template cudaError_t LaunchGroupedWgmma<Format::kBf16>(int, Epilogue, const GroupedArgs&, int, int,
                                                       cudaStream_t);

}  // namespace switchyard::cuda
