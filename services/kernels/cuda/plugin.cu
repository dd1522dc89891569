// The table of abi.h.
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>

#include "services/kernels/cuda/abi.h"
#include "services/kernels/cuda/context.h"
#include "services/kernels/cuda/expert_ffn.h"

using namespace switchyard::cuda;

namespace {

constexpr int kOldestMajor = 8;  // cp.async and bf16 products

int Count(int32_t* devices, SyCudaError* error) {
  int count = 0, driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  *devices = 0;
  if (driver == 0)
    return Fail(error, SY_CUDA_NO_DRIVER, "no NVIDIA driver (libcuda.so.1) is installed");
  const cudaError_t why = cudaGetDeviceCount(&count);
  if (why == cudaErrorInsufficientDriver) {
    return Fail(error, SY_CUDA_NO_DRIVER,
                "the NVIDIA driver is for CUDA %d.%d, this build for %d.%d; update the driver",
                driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  }
  if (why != cudaSuccess) return Fail(error, why, "counting devices");
  *devices = count;
  return SY_CUDA_OK;
}

int Open(int32_t device, SyCudaContext** context, SyCudaError* error) {
  int32_t devices = 0;
  if (const int status = Count(&devices, error); status != SY_CUDA_OK) return status;
  if (device < 0 || device >= devices) {
    return Fail(error, SY_CUDA_NO_DEVICE, "there is no device %d; there are %d", device, devices);
  }
  cudaDeviceProp properties;
  SY_CUDA_TRY(cudaGetDeviceProperties(&properties, device));
  if (properties.major < kOldestMajor) {
    return Fail(error, SY_CUDA_BAD_DEVICE,
                "%s has compute capability %d.%d; 8.0 (A100) or newer is needed", properties.name,
                properties.major, properties.minor);
  }
  SY_CUDA_TRY(cudaSetDevice(device));
  cudaStream_t uploads = nullptr;
  SY_CUDA_TRY(cudaStreamCreateWithFlags(&uploads, cudaStreamNonBlocking));
  *context = new (std::nothrow) SyCudaContext{device, properties, uploads};
  return *context == nullptr ? Fail(error, SY_CUDA_NO_MEMORY, "host memory") : SY_CUDA_OK;
}

void Close(SyCudaContext* context) {
  cudaSetDevice(context->device);
  cudaStreamSynchronize(context->uploads);
  cudaStreamDestroy(context->uploads);
  delete context;
}

int Describe(SyCudaContext* context, SyCudaDevice* out, SyCudaError* error) {
  *out = {};
  const cudaDeviceProp& p = context->properties;
  std::snprintf(out->name, sizeof(out->name), "%s", p.name);
  // Within one major the instructions, and so the bits, are taken to be the same.
  std::snprintf(out->arithmetic, sizeof(out->arithmetic), "cuda-sm%d0-%s", p.major,
                HasWgmma(p) ? "wgmma" : "mma");
  out->index = context->device;
  out->major = p.major;
  out->minor = p.minor;
  out->multiprocessors = p.multiProcessorCount;
  SY_CUDA_TRY(cudaSetDevice(context->device));
  size_t free = 0, total = 0;
  SY_CUDA_TRY(cudaMemGetInfo(&free, &total));
  out->memory_bytes = total;
  out->free_bytes = free;
  SY_CUDA_TRY(cudaDriverGetVersion(&out->driver_version));
  SY_CUDA_TRY(cudaRuntimeGetVersion(&out->runtime_version));
  return SY_CUDA_OK;
}

int AllocateBlock(SyCudaContext* context, int32_t memory, uint64_t bytes, void** out,
                  SyCudaError* error) {
  SY_CUDA_TRY(cudaSetDevice(context->device));
  return Allocate(static_cast<SyCudaMemory>(memory), bytes, out, error);
}

void ReleaseBlock(SyCudaContext* context, int32_t memory, void* block) {
  cudaSetDevice(context->device);
  Release(static_cast<SyCudaMemory>(memory), block);
}

int Upload(SyCudaContext* context, void* device, const void* pinned, uint64_t bytes,
           SyCudaError* error) {
  SY_CUDA_TRY(cudaSetDevice(context->device));
  SY_CUDA_TRY(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, context->uploads));
  cudaEvent_t done = nullptr;
  SY_CUDA_TRY(cudaEventCreateWithFlags(&done, cudaEventDisableTiming | cudaEventBlockingSync));
  cudaError_t why = cudaEventRecord(done, context->uploads);
  if (why == cudaSuccess) why = cudaEventSynchronize(done);
  cudaEventDestroy(done);
  return why == cudaSuccess ? SY_CUDA_OK : Fail(error, why, "copying weights");
}

bool Sound(const SyCudaMatrix& m) {
  return m.format >= SY_CUDA_BF16 && m.format <= SY_CUDA_E2M1 && m.rows > 0 && m.columns > 0 &&
         m.columns % 8 == 0 && (m.format == SY_CUDA_BF16) == (m.group == 0) &&
         m.group % kSlab == 0 && (m.group_rows == 1 || m.group_rows % 8 == 0);
}

uint64_t ExpertBytes(const SyCudaFfnSpec* spec, SyCudaError* error) {
  for (const auto& [m, name] :
       {std::pair{&spec->gate_up, "gate_up"}, std::pair{&spec->down, "down"}}) {
    if (Sound(*m)) continue;
    Fail(error, SY_CUDA_INVALID, "%s: format %d, %d by %d, a scale for %d by %d is not supported",
         name, m->format, m->rows, m->columns, m->group_rows, m->group);
    return 0;
  }
  if (spec->gate_up.rows != 2 * spec->intermediate || spec->gate_up.columns != spec->hidden ||
      spec->down.rows != spec->hidden || spec->down.columns != spec->intermediate ||
      spec->intermediate % 8 != 0) {
    Fail(error, SY_CUDA_INVALID, "matrices do not fit %d by %d", spec->hidden, spec->intermediate);
    return 0;
  }
  return ExpertBlock(*spec).bytes;
}

int CreateFfn(SyCudaContext* context, const SyCudaFfnSpec* spec, SyCudaFfn** ffn,
              SyCudaError* error) {
  if (ExpertBytes(spec, error) == 0) return SY_CUDA_INVALID;
  *ffn = new (std::nothrow) SyCudaFfn(*context, *spec);
  if (*ffn == nullptr) return Fail(error, SY_CUDA_NO_MEMORY, "host memory");
  const int status = (*ffn)->Prepare(error);
  if (status != SY_CUDA_OK) {
    delete *ffn;
    *ffn = nullptr;
  }
  return status;
}

constexpr SyCudaApi kApi = {
    .version = SY_CUDA_ABI_VERSION,
    .count = Count,
    .open = Open,
    .close = Close,
    .describe = Describe,
    .allocate = AllocateBlock,
    .release = ReleaseBlock,
    .upload = Upload,
    .expert_bytes = ExpertBytes,
    .ffn_create = CreateFfn,
    .ffn_destroy = [](SyCudaFfn* ffn) { delete ffn; },
    .ffn_pair_bytes = [](const SyCudaFfn* ffn) -> uint64_t { return ffn->pair_bytes(); },
    .ffn_begin = [](SyCudaFfn* ffn, const SyCudaFrameSize* size, SyCudaFrame* frame,
                    SyCudaError* error) { return ffn->Begin(*size, frame, error); },
    .ffn_rows = [](SyCudaFfn* ffn, int32_t first, int32_t count, const void* rows,
                   SyCudaError* error) { return ffn->Rows(first, count, rows, error); },
    .ffn_compute = [](SyCudaFfn* ffn, const SyCudaRun* runs, int32_t count,
                      SyCudaError* error) { return ffn->Compute(runs, count, error); },
    .ffn_finish = [](SyCudaFfn* ffn, const SyCudaOut* outs, int32_t count,
                     SyCudaError* error) { return ffn->Finish(outs, count, error); },
    .ffn_poll = [](SyCudaFfn* ffn, int32_t* done,
                   SyCudaError* error) { return ffn->Poll(done, error); },
    .ffn_wait = [](SyCudaFfn* ffn, SyCudaError* error) { return ffn->Wait(error); },
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const SyCudaApi* SyCudaPlugin(int32_t version) {
  return version == SY_CUDA_ABI_VERSION ? &kApi : nullptr;
}
