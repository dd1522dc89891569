// Starts kernels from host code, without the <<<>>> that only nvcc reads.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace switchyard::cuda {

// More shared memory than 48 KiB must be allowed for the kernel first (AllowShared).
template <typename... P, typename... A>
cudaError_t Launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, A... args) {
  const cudaLaunchConfig_t config = {grid, block, shared_bytes, stream};
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

template <typename... P>
cudaError_t AllowShared(void (*kernel)(P...), size_t bytes) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

}  // namespace switchyard::cuda
