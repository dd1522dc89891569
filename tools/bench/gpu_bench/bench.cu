// gpu_bench PROGRAM [WORDS]: one program of the figures, which prints lines of JSON.
#include "tools/bench/gpu_bench/bench.cuh"

namespace switchyard::gpu_bench {
namespace {

constexpr int kThreads = 256;

__device__ uint32_t Mixed(uint64_t x) {
  x = (x ^ x >> 33) * 0xff51afd7ed558ccdu;
  x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53u;
  return static_cast<uint32_t>(x ^ x >> 33);
}

// A bf16 of a magnitude from 2^-7 to 2^-5, of the low 16 bits.
__device__ uint32_t SmallBf16(uint32_t bits) {
  return (bits & 0x807f) | (120 + (bits >> 8 & 1)) << 7;
}

__device__ uint32_t TwoSmall(uint64_t at) {
  const uint32_t bits = Mixed(at);
  return SmallBf16(bits) | SmallBf16(bits >> 16) << 16;
}

__global__ void FillBf16(uint32_t* out, size_t words, uint32_t seed) {
  const size_t step = static_cast<size_t>(gridDim.x) * kThreads;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < words; i += step) {
    out[i] = TwoSmall(static_cast<uint64_t>(seed) << 40 | i);
  }
}

// Codes of any format are numbers, scales make them small, zero points are 8.
__global__ void FillTileWords(cuda::TileShape shape, uint32_t* out, size_t words, uint32_t seed) {
  const size_t step = static_cast<size_t>(gridDim.x) * kThreads;
  const size_t tile = shape.tile_bytes() / 4, scales = cuda::kTileElementBytes / 4;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < words; i += step) {
    const uint64_t key = static_cast<uint64_t>(seed) << 40 | i;
    if (i % tile >= shape.zeros_offset() / 4) {
      out[i] = cuda::ZeroWord(8);
    } else if (i % tile >= scales) {
      out[i] = __float_as_uint(3e-4f);
    } else if (shape.format == cuda::Format::kBf16) {
      out[i] = TwoSmall(key);
    } else {
      out[i] = Mixed(key) & (shape.format == cuda::Format::kE4M3 ? 0xfefefefeu : ~0u);  // no NaN
    }
  }
}

constexpr unsigned kFillBlocks = 4096;

// Leaves the cache full of lines that need not be written back.
__global__ void ReadAll(const uint4* from, size_t count, uint32_t* out) {
  const size_t step = static_cast<size_t>(gridDim.x) * kThreads;
  uint32_t all = 0;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    all |= from[i].x;
  }
  if (all != 0) *out = all;  // it is zeros
}

}  // namespace

Gpu::Gpu() {
  Ok(api().open(0, &context_, &error_), "open");
  SY_BENCH_CUDA(cudaGetDeviceProperties(&properties_, 0));
}

Gpu::~Gpu() {
  for (const auto& [memory, block] : blocks_) api().release(context_, memory, block);
  api().close(context_);
}

void* Gpu::Take(SyCudaMemory memory, size_t bytes) {
  void* block = nullptr;
  Ok(api().allocate(context_, memory, bytes, &block, &error_), "allocate");
  blocks_.emplace_back(memory, block);
  return block;
}

size_t Gpu::free_bytes() {
  size_t free = 0, total = 0;
  SY_BENCH_CUDA(cudaMemGetInfo(&free, &total));
  return free;
}

uint16_t* Gpu::RandomBf16(size_t count, uint32_t seed) {
  auto* const out = static_cast<uint32_t*>(Device((count + 1) / 2 * 4));
  FillBf16<<<kFillBlocks, kThreads>>>(out, (count + 1) / 2, seed);
  SY_BENCH_CUDA(cudaGetLastError());
  SY_BENCH_CUDA(cudaDeviceSynchronize());
  return reinterpret_cast<uint16_t*>(out);
}

void Gpu::FillTiles(const cuda::TileShape& shape, void* tiles, uint32_t seed) {
  FillTileWords<<<kFillBlocks, kThreads>>>(shape, static_cast<uint32_t*>(tiles), shape.bytes() / 4,
                                           seed);
  SY_BENCH_CUDA(cudaGetLastError());
  SY_BENCH_CUDA(cudaDeviceSynchronize());
}

Stopwatch::Stopwatch(Gpu& gpu) {
  flush_bytes_ = std::max<size_t>(size_t{256} << 20, 4 * size_t(gpu.properties().l2CacheSize));
  SY_BENCH_CUDA(cudaMalloc(&flush_, flush_bytes_));
  SY_BENCH_CUDA(cudaMemset(flush_, 0, flush_bytes_));
  SY_BENCH_CUDA(cudaDeviceSynchronize());
  SY_BENCH_CUDA(cudaEventCreate(&begin_));
  SY_BENCH_CUDA(cudaEventCreate(&end_));
}

Stopwatch::~Stopwatch() {
  cudaFree(flush_);
  cudaEventDestroy(begin_);
  cudaEventDestroy(end_);
}

void Stopwatch::Begin(cudaStream_t stream) {
  ReadAll<<<kFillBlocks, kThreads, 0, stream>>>(static_cast<const uint4*>(flush_),
                                                flush_bytes_ / 16, static_cast<uint32_t*>(flush_));
  SY_BENCH_CUDA(cudaEventRecord(begin_, stream));
}

double Stopwatch::End(cudaStream_t stream) {
  SY_BENCH_CUDA(cudaEventRecord(end_, stream));
  SY_BENCH_CUDA(cudaStreamSynchronize(stream));
  SY_BENCH_CUDA(cudaGetLastError());
  float ms = 0;
  SY_BENCH_CUDA(cudaEventElapsedTime(&ms, begin_, end_));
  return static_cast<double>(ms);
}

// ---- graphs ----

namespace {

#if CUDART_VERSION >= 13000
#define SY_NO_EDGE_DATA nullptr,
#else
#define SY_NO_EDGE_DATA
#endif

std::vector<cudaGraphNode_t> Neighbours(cudaGraphNode_t node, bool before) {
  size_t count = 0;
  const auto get = [&](cudaGraphNode_t* nodes) {
    SY_BENCH_CUDA(before ? cudaGraphNodeGetDependencies(node, nodes, SY_NO_EDGE_DATA & count)
                         : cudaGraphNodeGetDependentNodes(node, nodes, SY_NO_EDGE_DATA & count));
  };
  get(nullptr);
  std::vector<cudaGraphNode_t> nodes(count);
  if (count > 0) get(nodes.data());
  return nodes;
}

bool IsCopyWithHost(cudaGraphNode_t node) {
  cudaGraphNodeType type;
  SY_BENCH_CUDA(cudaGraphNodeGetType(node, &type));
  if (type != cudaGraphNodeTypeMemcpy) return false;
  cudaMemcpy3DParms copy;
  SY_BENCH_CUDA(cudaGraphMemcpyNodeGetParams(node, &copy));
  for (const void* const end : {copy.srcPtr.ptr, copy.dstPtr.ptr}) {
    cudaPointerAttributes memory;
    SY_BENCH_CUDA(cudaPointerGetAttributes(&memory, end));
    if (memory.type != cudaMemoryTypeDevice) return true;
  }
  return false;
}

}  // namespace

void Kernels::RemoveCopies() {
  SY_BENCH_CUDA(cudaGraphGetNodes(graph_, nullptr, &nodes_));
  std::vector<cudaGraphNode_t> nodes(nodes_);
  SY_BENCH_CUDA(cudaGraphGetNodes(graph_, nodes.data(), &nodes_));
  for (const cudaGraphNode_t node : nodes) {
    if (!IsCopyWithHost(node)) continue;
    // What came behind it comes behind what was before it.
    for (const cudaGraphNode_t from : Neighbours(node, true)) {
      for (const cudaGraphNode_t to : Neighbours(node, false)) {
        const std::vector<cudaGraphNode_t> there = Neighbours(from, false);
        if (std::find(there.begin(), there.end(), to) != there.end()) continue;
        SY_BENCH_CUDA(cudaGraphAddDependencies(graph_, &from, &to, SY_NO_EDGE_DATA 1));
      }
    }
    SY_BENCH_CUDA(cudaGraphDestroyNode(node));
    --nodes_;
  }
}

Kernels::~Kernels() {
  if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
  cudaGraphDestroy(graph_);
}

}  // namespace switchyard::gpu_bench

int main(int count, char** words) {
  using namespace switchyard::gpu_bench;
  const std::string program = count > 1 ? words[1] : "";
  const std::vector<std::string> more(words + std::min(count, 2), words + count);
  if (program == "frame") {
    MeasureFrame(more.empty() ? "bf16" : more[0]);
    return 0;
  }
  Gpu gpu;
  if (program == "limits") {
    MeasureLimits(gpu);
  } else if (program == "ffn") {
    MeasureFfn(gpu, more);
  } else if (program == "mla") {
    MeasureMla(gpu);
  } else if (program == "decode") {
    MeasureDecode(gpu, more);
  } else {
    Die("usage: gpu_bench limits | ffn FORMAT ROWS:EXPERTS:TOP_K... | mla | decode STREAMS... | "
        "frame FORMAT");
  }
  return 0;
}
