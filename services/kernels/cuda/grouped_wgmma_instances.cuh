// The definitions behind grouped_wgmma_launch.cuh, for the one file that compiles a format's.
#pragma once

#include <algorithm>

#include "services/kernels/cuda/grouped_wgmma_launch.cuh"

namespace switchyard::cuda {

// Calls f<kRows, kEpilogue>() until one fails or does what it was asked for.
template <Format kFormat, typename F>
cudaError_t EachWgmma(F f) {
  const auto both = [&](auto rows) {
    if (const cudaError_t error = f.template operator()<rows(), Epilogue::kStore>();
        error != cudaSuccess) {
      return error;
    }
    return f.template operator()<rows(), Epilogue::kActivate>();
  };
  const auto all = [&](auto... rows) {
    cudaError_t error = cudaSuccess;
    (void)((error = both(rows), error == cudaSuccess) && ...);
    return error;
  };
  using std::integral_constant;
  const cudaError_t error =
      all(integral_constant<int, 8>(), integral_constant<int, 16>(), integral_constant<int, 32>(),
          integral_constant<int, 64>(), integral_constant<int, 128>());
  if constexpr (kFormat == Format::kBf16) {
    return error != cudaSuccess ? error
                                : all(integral_constant<int, 192>(), integral_constant<int, 256>());
  }
  return error;
}

template <Format kFormat>
cudaError_t PrepareGroupedWgmma() {
  return EachWgmma<kFormat>([&]<int kRows, Epilogue kEpilogue>() {
    return AllowShared(&GroupedWgmma<kFormat, kRows, kEpilogue>,
                       GroupedStage<kFormat, kRows>::kSharedBytes);
  });
}

template <Format kFormat>
cudaError_t LaunchGroupedWgmma(int rows, Epilogue epilogue, const GroupedArgs& args, int runs,
                               int multiprocessors, cudaStream_t stream) {
  bool found = false;
  const cudaError_t error = EachWgmma<kFormat>([&]<int kRows, Epilogue kEpilogue>() {
    if (kRows != rows || kEpilogue != epilogue) return cudaSuccess;
    found = true;
    using Stage = GroupedStage<kFormat, kRows>;
    const int64_t groups =
        (args.product.shape.row_tiles() + Stage::kBlockTiles - 1) / Stage::kBlockTiles;
    const auto blocks =
        static_cast<unsigned>(std::min<int64_t>(multiprocessors, groups * int64_t{runs}));
    return Launch(&GroupedWgmma<kFormat, kRows, kEpilogue>, dim3(blocks), dim3(kGroupedThreads),
                  Stage::kSharedBytes, stream, args);
  });
  return error != cudaSuccess || found ? error : cudaErrorInvalidValue;
}

}  // namespace switchyard::cuda
