// A device behind the C ABI, and how its errors become the ABI's. Host code.
#pragma once

#include <cuda_runtime.h>

#include "services/kernels/cuda/abi.h"

struct SyCudaContext {
  int device = 0;
  cudaDeviceProp properties = {};
  cudaStream_t uploads = nullptr;
};

namespace switchyard::cuda {

// Whether there are wgmma's instructions: those of sm_90a are no other device's.
inline bool HasWgmma(const cudaDeviceProp& device) {
  return device.major == 9 && device.minor == 0;
}

// Writes "WHAT: why" and gives the ABI's status.
int Fail(SyCudaError* error, SyCudaStatus status, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
// Of a call of the runtime.
int Fail(SyCudaError* error, cudaError_t why, const char* what);

#define SY_CUDA_TRY(call)                                                       \
  do {                                                                          \
    const cudaError_t sy_cuda_error = (call);                                   \
    if (sy_cuda_error != cudaSuccess) return Fail(error, sy_cuda_error, #call); \
  } while (false)

// Memory that grows; what it held is lost then.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(SyCudaMemory memory) : memory_(memory) {}
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  int Reserve(size_t bytes, SyCudaError* error);
  unsigned char* data() const { return data_; }

 private:
  const SyCudaMemory memory_;
  unsigned char* data_ = nullptr;
  size_t capacity_ = 0;
};

int Allocate(SyCudaMemory memory, size_t bytes, void** out, SyCudaError* error);
void Release(SyCudaMemory memory, void* block);

}  // namespace switchyard::cuda
