// MLA's decode attention (latent 512, rope 64) over a paged cache, 64 sequences of 8192 tokens,
// with 128 heads and with 16, started as the backbone starts it.
#include "services/kernels/cuda/attention_launch.cuh"
#include "tools/bench/gpu_bench/bench.cuh"

namespace switchyard::gpu_bench {
namespace {

constexpr int kSequences = 64, kTokens = 8192, kBlockShift = 5, kLatent = 512, kRope = 64;

__global__ void FillFloats(float* out, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) out[i] = static_cast<float>((i * 2654435761u >> 8) % 2001) * 1e-3f - 1.0f;
}

// Of a whole of numbers `host`, on the device.
template <typename T>
T* Put(Gpu& gpu, const std::vector<T>& host) {
  auto* const out = static_cast<T*>(gpu.Device(host.size() * sizeof(T)));
  SY_BENCH_CUDA(cudaMemcpy(out, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return out;
}

void MeasureHeads(Gpu& gpu, Stopwatch& watch, cudaStream_t stream, cuda::AttentionArgs args) {
  const cuda::AttentionVectors vectors{kLatent + kRope, kLatent, true};
  const size_t shared = gpu.properties().sharedMemPerBlockOptin;
  const int64_t q = int64_t{kSequences} * args.heads * vectors.key_dim;
  auto* const query = static_cast<float*>(gpu.Device(static_cast<size_t>(q) * sizeof(float)));
  FillFloats<<<static_cast<unsigned>((q + 255) / 256), 256>>>(query, q);
  SY_BENCH_CUDA(cudaDeviceSynchronize());
  const int64_t out = int64_t{kSequences} * args.heads * kLatent;
  args.q = query;
  args.out = gpu.Device(static_cast<size_t>(out) * 2);
  const int rows = cuda::AttentionRows(vectors, args.heads, 1, 1, shared);
  const int blocks = kSequences * cuda::HeadTiles(args.heads, 1, rows);
  args.slots =
      blocks >= 2 * gpu.properties().multiProcessorCount ? 1 : (kTokens - 1) / args.split_keys + 1;
  const auto partials = static_cast<size_t>(kSequences * args.heads * args.slots);
  args.partial = static_cast<float*>(gpu.Device(partials * kLatent * sizeof(float)));
  args.stats = static_cast<float2*>(gpu.Device(partials * sizeof(float2)));
  const double ms = watch.MedianMs(stream, [&] {
    SY_BENCH_CUDA(cuda::Attention(vectors, rows, shared, args, kSequences, stream));
  });
  const double keys = double(kSequences) * kTokens * vectors.key_dim * 2;
  Line("mla")
      .Number("heads", args.heads)
      .Number("sequences", kSequences)
      .Number("tokens", kTokens)
      .Number("ms", ms)
      .Number("splits", args.slots)
      .Number("bytes", keys + double(q) * 4 + double(out) * 2)
      .Number("flop", 2.0 * kSequences * kTokens * args.heads * (vectors.key_dim + kLatent));
}

}  // namespace

void MeasureMla(Gpu& gpu) {
  constexpr int kBlocks = kTokens >> kBlockShift;
  const size_t record = kLatent + kRope;
  std::vector<int32_t> tables, positions(kSequences, kTokens - 1);
  for (int i = 0; i < kSequences * kBlocks; ++i) tables.push_back(i);
  Random random(5);
  for (size_t i = tables.size() - 1; i > 0; --i) {
    std::swap(tables[i], tables[static_cast<size_t>(random.Below(static_cast<int>(i) + 1))]);
  }
  std::vector<cuda::QueryRun> runs;
  for (int s = 0; s < kSequences; ++s) runs.push_back({s, 1, int64_t{s} * kBlocks});
  const cuda::AttentionArgs args{.out_bf16 = true,
                                 .runs = Put(gpu, runs),
                                 .positions = Put(gpu, positions),
                                 .tables = Put(gpu, tables),
                                 .cache = reinterpret_cast<const unsigned char*>(
                                     gpu.RandomBf16(size_t{kSequences} * kTokens * record, 4)),
                                 .block_stride_bytes = static_cast<int64_t>(record * 2)
                                                       << kBlockShift,
                                 .block_shift = kBlockShift,
                                 .rows = kSequences,
                                 .kv_heads = 1,
                                 .scale = 0.07f};
  cudaStream_t stream;
  SY_BENCH_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Stopwatch watch(gpu);
  for (const int heads : {128, 16}) {
    cuda::AttentionArgs of = args;
    of.heads = heads;
    MeasureHeads(gpu, watch, stream, of);
  }
  SY_BENCH_CUDA(cudaStreamDestroy(stream));
}

}  // namespace switchyard::gpu_bench
