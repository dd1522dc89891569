// What lies between the products of the backbone: embedding, RMSNorm, rope, records for the cache.
//
// All of it is limited by bytes, or, for the few rows of decoding, by latency: threads take four
// numbers at a time, and what one kernel can do on the way (the residual's sum, the choice of rows,
// rounding) it does.
//
// Sameness: a row is a function of its operands; the sum of squares has one order, which follows
// from the width alone.
#pragma once

#include "services/kernels/cuda/launch.cuh"
#include "services/kernels/cuda/ptx.cuh"

namespace switchyard::cuda {

inline constexpr int kRowThreads = 256;

// Rows in memory; widths and strides are multiples of 4, the memory is aligned to 16 bytes.
struct FloatRows {
  float* data = nullptr;
  int64_t stride = 0;
};
struct OutRows {
  void* data = nullptr;
  int64_t stride = 0;
  bool bf16 = false;
};

__device__ __forceinline__ float4 LoadFour(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}
__device__ __forceinline__ void StoreFour(float4 x, uint16_t* to) {
  *reinterpret_cast<uint2*>(to) = {Pack2(x.x, x.y), Pack2(x.z, x.w)};
}
__device__ __forceinline__ void StoreFour(float4 x, const OutRows& out, int64_t at) {
  if (out.bf16) {
    StoreFour(x, static_cast<uint16_t*>(out.data) + at);
  } else {
    *reinterpret_cast<float4*>(static_cast<float*>(out.data) + at) = x;
  }
}

struct NormArgs {
  FloatRows x;  // out may be it
  int32_t rows = 0, width = 0;
  // Parts of a row that are normed apart (heads), as far from each other in x, add and out.
  int32_t pieces = 1;
  int64_t piece_stride = 0;
  const int32_t* gather = nullptr;  // row of x (and of add) for each of out; null: the same
  const float* add = nullptr;       // [rows, add_stride], added to x first, where it stays
  int64_t add_stride = 0;
  const float* weight = nullptr;  // [width], aligned to 16 bytes; null: ones
  float eps = 0;
  OutRows out;
};

// Sum over the kThreads threads of a row, which all receive it.
template <int kThreads>
__device__ __forceinline__ float SumOfRow(float x) {
  SY_CUDA_UNROLL
  for (int mask = 16; mask >= 1; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
  if constexpr (kThreads == 32) {
    return x;
  } else {
    SY_CUDA_SHARED(shared);
    auto* const sums = reinterpret_cast<float*>(shared);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    SY_CUDA_UNROLL
    for (int w = 0; w < kThreads / 32; ++w) sum += sums[w];
    return sum;
  }
}

// out = x / rms(x) · weight. A row is a warp's (32) or a block's (kRowThreads).
template <int kThreads>
__global__ void __launch_bounds__(kRowThreads) RmsNorm(const NormArgs args) {
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kRowThreads / kThreads) +
                       static_cast<int>(threadIdx.x) / kThreads;
  if (item >= int64_t{args.rows} * args.pieces) return;  // all of a warp, or of the block
  const int64_t row = item / args.pieces, piece = item % args.pieces * args.piece_stride;
  const int64_t from = args.gather == nullptr ? row : args.gather[row];
  float* const x = args.x.data + from * args.x.stride + piece;
  float squares = 0;
  for (int i = thread * 4; i < args.width; i += kThreads * 4) {
    float4 v = LoadFour(x + i);
    if (args.add != nullptr) {
      const float4 more = LoadFour(args.add + from * args.add_stride + piece + i);
      v = {v.x + more.x, v.y + more.y, v.z + more.z, v.w + more.w};
      *reinterpret_cast<float4*>(x + i) = v;
    }
    squares = fmaf(v.x, v.x, squares), squares = fmaf(v.y, v.y, squares);
    squares = fmaf(v.z, v.z, squares), squares = fmaf(v.w, v.w, squares);
  }
  const float mean = SumOfRow<kThreads>(squares) / static_cast<float>(args.width);
  const float scale = 1.0f / sqrtf(mean + args.eps);
  for (int i = thread * 4; i < args.width; i += kThreads * 4) {
    float4 v = LoadFour(x + i);
    v = {v.x * scale, v.y * scale, v.z * scale, v.w * scale};
    if (args.weight != nullptr) {
      const float4 w = LoadFour(args.weight + i);
      v = {v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w};
    }
    StoreFour(v, args.out, row * args.out.stride + piece + i);
  }
}

// Rotates the first `dim` numbers of each head; those behind are only copied. Where `to` is `from`
// it is done in place.
struct RopeArgs {
  const float* from = nullptr;
  float* to = nullptr;
  int64_t from_stride = 0, from_head_stride = 0;  // from row to row, from head to head
  int64_t to_stride = 0, to_head_stride = 0;
  int32_t rows = 0, heads = 0;
  int32_t width = 0, dim = 0;          // even
  bool interleaved = false;            // pairs are (0, 1), (2, 3), …; otherwise (i, i + dim / 2)
  float clip = 0;                      // of all numbers, before; 0: none
  const int32_t* positions = nullptr;  // [rows]; -1: nothing is done
  const float* table = nullptr;        // [positions][cos of dim / 2, sin of dim / 2]
};

__device__ __forceinline__ float Clip(float x, float limit) {
  if (limit <= 0) return x;
  return x > limit ? limit : x < -limit ? -limit : x;
}

// grid: rows. A thread takes a pair of numbers.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) Rope(const RopeArgs args) {
  const int64_t row = blockIdx.x;
  const int position = args.positions[row];
  if (position < 0) return;
  const int half = args.dim / 2, pairs = args.width / 2;
  const float* const cos = args.table + static_cast<int64_t>(position) * args.dim;
  for (int i = static_cast<int>(threadIdx.x); i < args.heads * pairs; i += kThreads) {
    const int head = i / pairs, pair = i % pairs;
    const float* const from = args.from + row * args.from_stride + head * args.from_head_stride;
    float* const to = args.to + row * args.to_stride + head * args.to_head_stride;
    const bool apart = pair < half && !args.interleaved;
    const int first = apart ? pair : pair * 2, second = apart ? pair + half : first + 1;
    const float a = Clip(from[first], args.clip), b = Clip(from[second], args.clip);
    if (pair < half) {
      const float c = cos[pair], s = cos[half + pair];
      to[first] = fmaf(a, c, -(b * s));
      to[second] = fmaf(b, c, a * s);
    } else {
      to[first] = a, to[second] = b;
    }
  }
}

// Records of tokens into the paged cache of a layer, as attention.cuh reads it.
struct StoreKvArgs {
  const float* from = nullptr;  // [rows, stride]
  int64_t stride = 0;
  int32_t rows = 0, width = 0;            // of a record
  float clip = 0;                         // as of RopeArgs
  const int32_t* positions = nullptr;     // [rows]; -1: nothing is stored
  const int64_t* table_of_row = nullptr;  // where the block table of its sequence begins in tables
  const int32_t* tables = nullptr;
  unsigned char* cache = nullptr;
  int64_t block_stride_bytes = 0;
  int32_t block_shift = 5;
};

// grid: rows.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) StoreKv(const StoreKvArgs args) {
  const int64_t row = blockIdx.x;
  const int position = args.positions[row];
  if (position < 0) return;
  const int block = args.tables[args.table_of_row[row] + (position >> args.block_shift)];
  const int slot = position & ((1 << args.block_shift) - 1);
  auto* const to = reinterpret_cast<uint16_t*>(args.cache + block * args.block_stride_bytes) +
                   static_cast<int64_t>(slot) * args.width;
  for (int i = static_cast<int>(threadIdx.x) * 4; i < args.width; i += kThreads * 4) {
    const float4 x = LoadFour(args.from + row * args.stride + i);
    StoreFour(
        {Clip(x.x, args.clip), Clip(x.y, args.clip), Clip(x.z, args.clip), Clip(x.w, args.clip)},
        to + i);
  }
}

// Rows of a bf16 table as float32. grid: rows.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    Embed(const uint16_t* table, int32_t width, const int32_t* tokens, FloatRows out) {
  const int64_t row = blockIdx.x;
  const uint16_t* const from = table + static_cast<int64_t>(tokens[row]) * width;
  for (int i = static_cast<int>(threadIdx.x) * 4; i < width; i += kThreads * 4) {
    const uint2 x = *reinterpret_cast<const uint2*>(from + i);
    *reinterpret_cast<float4*>(out.data + row * out.stride + i) = {
        FromBf16(x.x & 0xffffu), FromBf16(x.x >> 16), FromBf16(x.y & 0xffffu), FromBf16(x.y >> 16)};
  }
}

// Rounds rows to bf16. grid: rows.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    RoundRows(FloatRows x, int32_t width, uint16_t* out, int64_t out_stride) {
  const int64_t row = blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x) * 4; i < width; i += kThreads * 4) {
    StoreFour(LoadFour(x.data + row * x.stride + i), out + row * out_stride + i);
  }
}

// ---- host ----

inline cudaError_t LaunchRmsNorm(const NormArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  const int64_t items = int64_t{args.rows} * args.pieces;
  if (args.width > 1024) {
    return Launch(RmsNorm<kRowThreads>, {static_cast<unsigned>(items)}, {kRowThreads},
                  kRowThreads / 32 * sizeof(float), stream, args);
  }
  constexpr int kRows = kRowThreads / 32;
  return Launch(RmsNorm<32>, {static_cast<unsigned>((items + kRows - 1) / kRows)}, {kRowThreads}, 0,
                stream, args);
}
inline cudaError_t LaunchRope(const RopeArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  return Launch(Rope<kRowThreads>, {static_cast<unsigned>(args.rows)}, {kRowThreads}, 0, stream,
                args);
}
inline cudaError_t LaunchStoreKv(const StoreKvArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  return Launch(StoreKv<kRowThreads>, {static_cast<unsigned>(args.rows)}, {kRowThreads}, 0, stream,
                args);
}
inline cudaError_t LaunchEmbed(const uint16_t* table, int32_t width, const int32_t* tokens,
                               int32_t rows, const FloatRows& out, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return Launch(Embed<kRowThreads>, {static_cast<unsigned>(rows)}, {kRowThreads}, 0, stream, table,
                width, tokens, out);
}
inline cudaError_t LaunchRoundRows(const FloatRows& x, int32_t rows, int32_t width, uint16_t* out,
                                   int64_t out_stride, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return Launch(RoundRows<kRowThreads>, {static_cast<unsigned>(rows)}, {kRowThreads}, 0, stream, x,
                width, out, out_stride);
}

}  // namespace switchyard::cuda
