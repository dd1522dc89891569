// Which instance of GroupedWgmma a product takes, on devices of compute capability 9.0 alone. Each
// format's (bf16, e4m3) are compiled in a file of its own.
#pragma once

#include "services/kernels/cuda/grouped_wgmma.cuh"
#include "services/kernels/cuda/launch.cuh"

namespace switchyard::cuda {

// Whether it multiplies by weights of this shape.
constexpr bool WgmmaTakes(const TileShape& shape) {
  return shape.format == Format::kBf16 ||
         (shape.format == Format::kE4M3 && shape.group > 0 && shape.group % 128 == 0);
}

// Once for each device, before the first launch.
template <Format kFormat>
cudaError_t PrepareGroupedWgmma();
// `rows` is one of RowsABlock(kFormat, ·); args.runs or args.run_count of them.
template <Format kFormat>
cudaError_t LaunchGroupedWgmma(int rows, Epilogue epilogue, const GroupedArgs& args, int runs,
                               int multiprocessors, cudaStream_t stream);

}  // namespace switchyard::cuda
