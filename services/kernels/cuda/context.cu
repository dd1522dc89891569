#include "services/kernels/cuda/context.h"

#include <cstdarg>
#include <cstdio>

namespace switchyard::cuda {

int Fail(SyCudaError* error, SyCudaStatus status, const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(error->text, sizeof(error->text), format, args);
  va_end(args);
  return status;
}

int Fail(SyCudaError* error, cudaError_t why, const char* what) {
  const SyCudaStatus status = why == cudaErrorMemoryAllocation     ? SY_CUDA_NO_MEMORY
                              : why == cudaErrorInsufficientDriver ? SY_CUDA_NO_DRIVER
                              : why == cudaErrorNoDevice           ? SY_CUDA_NO_DEVICE
                              : why == cudaErrorInvalidDevice      ? SY_CUDA_NO_DEVICE
                                                                   : SY_CUDA_LOST;
  return Fail(error, status, "%s (%s)", cudaGetErrorString(why), what);
}

int Allocate(SyCudaMemory memory, size_t bytes, void** out, SyCudaError* error) {
  *out = nullptr;
  const cudaError_t why = memory == SY_CUDA_DEVICE
                              ? cudaMalloc(out, bytes)
                              : cudaHostAlloc(out, bytes, cudaHostAllocDefault);
  if (why == cudaSuccess) return SY_CUDA_OK;
  cudaGetLastError();  // it is told here; later calls are not to find it
  return Fail(error, why, memory == SY_CUDA_DEVICE ? "device memory" : "pinned host memory");
}

void Release(SyCudaMemory memory, void* block) {
  if (memory == SY_CUDA_DEVICE) {
    cudaFree(block);
  } else {
    cudaFreeHost(block);
  }
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) Release(memory_, data_);
}

int DeviceBuffer::Reserve(size_t bytes, SyCudaError* error) {
  if (bytes <= capacity_) return SY_CUDA_OK;
  if (data_ != nullptr) Release(memory_, data_);
  data_ = nullptr;
  capacity_ = 0;
  const size_t room = bytes + bytes / 4;  // so that slowly growing frames do not allocate each time
  void* block = nullptr;
  if (const int status = Allocate(memory_, room, &block, error); status != SY_CUDA_OK)
    return status;
  data_ = static_cast<unsigned char*>(block);
  capacity_ = room;
  return SY_CUDA_OK;
}

}  // namespace switchyard::cuda
