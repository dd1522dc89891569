// What the device gives: bytes/s of plain reading and copying, and FLOP/s of cuBLASLt's dense
// product, the denominators of the figures.
#include <dlfcn.h>

#include "tools/bench/gpu_bench/bench.cuh"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#define SY_HAS_CUBLASLT 1
#endif

namespace switchyard::gpu_bench {
namespace {

constexpr int kThreads = 512, kAhead = 8;  // loads of 16 bytes in flight

// A block takes pieces of kThreads · kAhead · 16 bytes.
__global__ void __launch_bounds__(kThreads) Read(const uint4* from, size_t count, uint32_t* out) {
  uint32_t all = 0;
  for (size_t at = static_cast<size_t>(blockIdx.x) * kThreads * kAhead; at < count;
       at += static_cast<size_t>(gridDim.x) * kThreads * kAhead) {
    uint4 x[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) x[i] = __ldcs(from + at + i * kThreads + threadIdx.x);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) all ^= x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
  }
  if (all == 0x12345678u) *out = all;  // so that the loads are wanted
}

__global__ void __launch_bounds__(kThreads) Copy(const uint4* from, size_t count, uint4* to) {
  for (size_t at = static_cast<size_t>(blockIdx.x) * kThreads * kAhead; at < count;
       at += static_cast<size_t>(gridDim.x) * kThreads * kAhead) {
    uint4 x[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) x[i] = __ldcs(from + at + i * kThreads + threadIdx.x);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) __stcs(to + at + i * kThreads + threadIdx.x, x[i]);
  }
}

void MeasureMemory(Gpu& gpu, Stopwatch& watch, cudaStream_t stream) {
  const size_t piece = size_t{kThreads} * kAhead * 16;
  const size_t bytes = std::min<size_t>(size_t{4} << 30, gpu.free_bytes() / 4) / piece * piece;
  const auto* const from = reinterpret_cast<const uint4*>(gpu.RandomBf16(bytes / 2, 1));
  auto* const to = static_cast<uint4*>(gpu.Device(bytes));
  double read = 1e30, copied = 1e30;
  for (const unsigned waves : {2u, 4u, 16u}) {
    const unsigned blocks = waves * static_cast<unsigned>(gpu.properties().multiProcessorCount);
    read = std::min(read, watch.MedianMs(stream, [&] {
      Read<<<blocks, kThreads, 0, stream>>>(from, bytes / 16, reinterpret_cast<uint32_t*>(to));
    }));
    copied = std::min(copied, watch.MedianMs(stream, [&] {
      Copy<<<blocks, kThreads, 0, stream>>>(from, bytes / 16, to);
    }));
  }
  Line("memory")
      .Number("bytes", double(bytes))
      .Number("read_gb_s", double(bytes) / read / 1e6)
      .Number("copy_gb_s", 2 * double(bytes) / copied / 1e6);
}

#ifdef SY_HAS_CUBLASLT

// cuBLASLt, loaded at run time: nothing of ours is linked with it.
struct CublasLt {
  void* library = nullptr;
#define SY_LT(name) decltype(&::name) name = nullptr
  SY_LT(cublasLtCreate);
  SY_LT(cublasLtMatmul);
  SY_LT(cublasLtMatmulDescCreate);
  SY_LT(cublasLtMatmulDescSetAttribute);
  SY_LT(cublasLtMatrixLayoutCreate);
  SY_LT(cublasLtMatmulPreferenceCreate);
  SY_LT(cublasLtMatmulPreferenceSetAttribute);
  SY_LT(cublasLtMatmulAlgoGetHeuristic);
#undef SY_LT

  // What is missing; empty: nothing.
  std::string Load() {
    const std::string major = std::to_string(CUDART_VERSION / 1000);
    const char* const named = std::getenv("SWITCHYARD_CUBLASLT");
    for (const std::string& file : {std::string(named == nullptr ? "" : named),
                                    "libcublasLt.so." + major, std::string("libcublasLt.so")}) {
      if (!file.empty() && library == nullptr) library = dlopen(file.c_str(), RTLD_NOW);
    }
    if (library == nullptr) return std::string("no cuBLASLt: ") + dlerror();
    std::string missing;
#define SY_LT(name)                                                  \
  name = reinterpret_cast<decltype(&::name)>(dlsym(library, #name)); \
  if (name == nullptr) missing = "libcublasLt has no " #name
    SY_LT(cublasLtCreate);
    SY_LT(cublasLtMatmul);
    SY_LT(cublasLtMatmulDescCreate);
    SY_LT(cublasLtMatmulDescSetAttribute);
    SY_LT(cublasLtMatrixLayoutCreate);
    SY_LT(cublasLtMatmulPreferenceCreate);
    SY_LT(cublasLtMatmulPreferenceSetAttribute);
    SY_LT(cublasLtMatmulAlgoGetHeuristic);
#undef SY_LT
    return missing;
  }
};

#define SY_LT_CALL(call)                                                                          \
  do {                                                                                            \
    const cublasStatus_t sy_lt = (call);                                                          \
    if (sy_lt != CUBLAS_STATUS_SUCCESS) return std::string(#call) + ": " + std::to_string(sy_lt); \
  } while (false)

// The fastest of what the heuristic offers for y[m, n] = a[m, k] · b[n, k]ᵀ of bf16.
std::string MeasureProduct(Gpu& gpu, Stopwatch& watch, cudaStream_t stream, CublasLt& lt,
                           uint64_t n) {
  const size_t numbers = static_cast<size_t>(n) * n;
  const uint16_t *a = gpu.RandomBf16(numbers, 2), *b = gpu.RandomBf16(numbers, 3);
  void* const y = gpu.Device(numbers * 2);
  const size_t workspace_bytes = size_t{64} << 20;
  void* const workspace = gpu.Device(workspace_bytes);
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t layout;
  cublasLtMatmulPreference_t preference;
  SY_LT_CALL(lt.cublasLtCreate(&handle));
  SY_LT_CALL(lt.cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  SY_LT_CALL(lt.cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                               sizeof(transposed)));
  SY_LT_CALL(lt.cublasLtMatrixLayoutCreate(&layout, CUDA_R_16BF, n, n, static_cast<int64_t>(n)));
  SY_LT_CALL(lt.cublasLtMatmulPreferenceCreate(&preference));
  SY_LT_CALL(lt.cublasLtMatmulPreferenceSetAttribute(preference,
                                                     CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                     &workspace_bytes, sizeof(workspace_bytes)));
  cublasLtMatmulHeuristicResult_t found[16];
  int count = 0;
  SY_LT_CALL(lt.cublasLtMatmulAlgoGetHeuristic(handle, desc, layout, layout, layout, layout,
                                               preference, 16, found, &count));
  double best = 0;
  const float one = 1, zero = 0;
  for (int i = 0; i < count; ++i) {
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    const double ms = watch.MedianMs(
        stream,
        [&] {
          const cublasStatus_t now =
              lt.cublasLtMatmul(handle, desc, &one, a, layout, b, layout, &zero, y, layout, y,
                                layout, &found[i].algo, workspace, workspace_bytes, stream);
          if (now != CUBLAS_STATUS_SUCCESS) status = now;
        },
        20);
    if (status == CUBLAS_STATUS_SUCCESS) {
      best = std::max(best, 2 * double(n) * double(n) * double(n) / ms / 1e9);
    }
  }
  if (best == 0) return "cuBLASLt has no algorithm for bf16";
  Line("cublaslt").Number("n", double(n)).Number("bf16_tflop_s", best).Number("algorithms", count);
  return "";
}

std::string MeasureProducts(Gpu& gpu, Stopwatch& watch, cudaStream_t stream) {
  CublasLt lt;
  std::string why = lt.Load();
  for (const uint64_t n : {uint64_t{4096}, uint64_t{8192}}) {
    if (why.empty()) why = MeasureProduct(gpu, watch, stream, lt, n);
  }
  return why;
}

#else

std::string MeasureProducts(Gpu&, Stopwatch&, cudaStream_t) {
  return "cublasLt.h was not there when this was built";
}

#endif

}  // namespace

void MeasureLimits(Gpu& gpu) {
  cudaStream_t stream;
  SY_BENCH_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  SyCudaDevice about;
  gpu.Ok(gpu.api().describe(gpu.context(), &about, gpu.error()), "describe");
  Line("device")
      .Text("name", about.name)
      .Text("arithmetic", about.arithmetic)
      .Number("major", about.major)
      .Number("minor", about.minor)
      .Number("multiprocessors", about.multiprocessors)
      .Number("memory_bytes", double(about.memory_bytes))
      .Number("l2_bytes", gpu.properties().l2CacheSize)
      .Number("driver", about.driver_version)
      .Number("runtime", about.runtime_version);
  Stopwatch watch(gpu);
  MeasureMemory(gpu, watch, stream);
  const std::string why = MeasureProducts(gpu, watch, stream);
  if (!why.empty()) Line("cublaslt").Text("reason", why);
  SY_BENCH_CUDA(cudaStreamDestroy(stream));
}

}  // namespace switchyard::gpu_bench
