// The definitions behind grouped_matmul_launch.cuh, for the one file that compiles a format's.
#pragma once

#include "services/kernels/cuda/grouped_matmul_launch.cuh"

namespace switchyard::cuda {

template <Format kFormat, int kRows, Epilogue kEpilogue>
cudaError_t AllowInstance() {
  return AllowShared(&GroupedMatMul<kFormat, kRows, kEpilogue>,
                     MatMulStage<kFormat, kRows>::kSharedBytes);
}

template <Format kFormat, int kRows>
cudaError_t LaunchInstance(Epilogue epilogue, const MatMulArgs& args, int runs,
                           cudaStream_t stream) {
  const auto kernel = epilogue == Epilogue::kActivate
                          ? &GroupedMatMul<kFormat, kRows, Epilogue::kActivate>
                          : &GroupedMatMul<kFormat, kRows, Epilogue::kStore>;
  const dim3 grid(static_cast<unsigned>(args.shape.row_tiles()), static_cast<unsigned>(runs));
  return Launch(kernel, grid, dim3(kMatMulThreads), MatMulStage<kFormat, kRows>::kSharedBytes,
                stream, args);
}

template <Format kFormat>
cudaError_t PrepareGroupedMatMul() {
  constexpr Epilogue kStore = Epilogue::kStore, kActivate = Epilogue::kActivate;
  for (const cudaError_t error :
       {AllowInstance<kFormat, 8, kStore>(), AllowInstance<kFormat, 8, kActivate>(),
        AllowInstance<kFormat, 16, kStore>(), AllowInstance<kFormat, 16, kActivate>(),
        AllowInstance<kFormat, 32, kStore>(), AllowInstance<kFormat, 32, kActivate>(),
        AllowInstance<kFormat, 64, kStore>(), AllowInstance<kFormat, 64, kActivate>()}) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <Format kFormat>
cudaError_t LaunchGroupedMatMul(int rows, Epilogue epilogue, const MatMulArgs& args, int runs,
                                cudaStream_t stream) {
  switch (rows) {
    case 8:
      return LaunchInstance<kFormat, 8>(epilogue, args, runs, stream);
    case 16:
      return LaunchInstance<kFormat, 16>(epilogue, args, runs, stream);
    case 32:
      return LaunchInstance<kFormat, 32>(epilogue, args, runs, stream);
    default:
      return LaunchInstance<kFormat, 64>(epilogue, args, runs, stream);
  }
}

}  // namespace switchyard::cuda
