// A CUDA device, behind the plugin libswitchyard_cuda.so (services/kernels/cuda/abi.h), which is
// loaded when somebody asks for a device and never linked: binaries run where there is no driver.
//
// Thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/kernels/cuda/abi.h"
#include "services/kernels/cuda/backbone_abi.h"

namespace switchyard::device {

// As the plugin says it: NO_DRIVER, NO_DEVICE and BAD_DEVICE are FAILED_PRECONDITION, NO_MEMORY
// RESOURCE_EXHAUSTED, INVALID INTERNAL, LOST DATA_LOSS. `what`, if not empty, stands before it.
absl::Status ToStatus(int code, const SyCudaError& error, std::string_view what = {});

class Cuda {
 public:
  // `plugin` is a file; empty: libswitchyard_cuda.so beside the program, in ../lib or
  // ../lib/switchyard from there, or where the system's loader looks. FAILED_PRECONDITION says what
  // is missing: the plugin (and where it was looked for), the driver, the device or its
  // architecture, and the mend.
  static absl::StatusOr<std::shared_ptr<Cuda>> Open(const std::string& plugin, int index);
  ~Cuda();
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;

  const SyCudaApi& api() const { return *api_; }
  // FAILED_PRECONDITION where the plugin has none of this version.
  absl::StatusOr<const SyCudaBackboneApi*> backbone_api() const;
  SyCudaContext* context() const { return context_; }
  // As it was when it was opened.
  const SyCudaDevice& about() const { return about_; }
  std::string name() const;  // "NVIDIA H100 (cuda:0)"
  // Now. DATA_LOSS where the device is lost.
  absl::StatusOr<uint64_t> FreeBytes() const;

 private:
  // The library stays loaded: its threads may outlive any owner.
  Cuda(void* library, const SyCudaApi* api) : library_(library), api_(api) {}

  void* const library_;
  const SyCudaApi* const api_;
  SyCudaContext* context_ = nullptr;
  SyCudaDevice about_ = {};
};

struct ReleaseCudaBlock {
  std::shared_ptr<const Cuda> cuda;
  SyCudaMemory memory = SY_CUDA_DEVICE;
  void operator()(std::byte* block) const;
};

// Memory of a device, or pinned memory of the host.
class CudaBlock {
 public:
  // RESOURCE_EXHAUSTED where there is no room.
  static absl::StatusOr<CudaBlock> Allocate(std::shared_ptr<const Cuda> cuda, SyCudaMemory memory,
                                            size_t bytes);
  CudaBlock() = default;
  CudaBlock(CudaBlock&&) = default;
  CudaBlock& operator=(CudaBlock&&) = default;

  std::byte* data() const { return block_.get(); }
  explicit operator bool() const { return block_ != nullptr; }

 private:
  std::unique_ptr<std::byte, ReleaseCudaBlock> block_;
};

}  // namespace switchyard::device
