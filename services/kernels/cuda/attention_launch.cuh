// Starts the kernels of attention.cuh from host code, for the vectors that models have.
#pragma once

#include "services/kernels/cuda/attention.cuh"
#include "services/kernels/cuda/launch.cuh"

namespace switchyard::cuda {

struct AttentionVectors {
  int32_t key_dim = 0, value_dim = 0;
  bool values_in_key = false;
};

template <typename Shape>
cudaError_t LaunchAttention(const AttentionArgs& args, int32_t runs, cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(HeadTiles(args.heads, args.kv_heads, Shape::kRows));
  const auto slots = static_cast<unsigned>(args.slots);
  if (const auto e = AllowShared(Attend<Shape>, Shape::kSharedBytes); e != cudaSuccess) return e;
  if (runs == 0) return cudaSuccess;
  if (const auto e = Launch(Attend<Shape>, {heads, static_cast<unsigned>(runs), slots},
                            {kAttentionThreads}, Shape::kSharedBytes, stream, args);
      e != cudaSuccess || slots == 1) {
    return e;
  }
  const int64_t items = int64_t{args.rows} * args.heads * (Shape::kValueDim / 4);
  const auto blocks = static_cast<unsigned>((items + kCombineThreads - 1) / kCombineThreads);
  return Launch(CombineSplits<Shape::kValueDim>, {blocks}, {kCombineThreads}, 0, stream, args);
}

// Rows of a tile that suit runs of up to `queries` queries. `shared_bytes` is what a block of the
// device may have (sharedMemPerBlockOptin); it decides speed, never bits.
inline int32_t AttentionRows(const AttentionVectors& vectors, int32_t heads, int32_t kv_heads,
                             int32_t queries, size_t shared_bytes) {
  const bool large =
      vectors.key_dim == 576 && shared_bytes < AttentionShape<576, 512, true, 64, 2>::kSharedBytes;
  const bool small = vectors.key_dim < 64 || vectors.key_dim == 80;
  return large || small || heads / kv_heads * queries <= 16 ? 16 : 64;
}

// Attention of `runs` runs of at most QueriesATile(heads, kv_heads, rows) queries.
// cudaErrorInvalidValue for vectors, or rows, that there is no kernel for, also where there are no
// runs: so one may ask.
inline cudaError_t Attention(const AttentionVectors& vectors, int32_t rows, size_t shared_bytes,
                             const AttentionArgs& args, int32_t runs, cudaStream_t stream) {
  const auto is = [&](int32_t key, int32_t value, bool in_key, int32_t tile_rows) {
    return vectors.key_dim == key && vectors.value_dim == value &&
           vectors.values_in_key == in_key && rows == tile_rows;
  };
  using Deep = AttentionShape<576, 512, true, 16, 3>;
  if (is(576, 512, true, 16)) {
    return shared_bytes < Deep::kSharedBytes
               ? LaunchAttention<AttentionShape<576, 512, true, 16, 2>>(args, runs, stream)
               : LaunchAttention<Deep>(args, runs, stream);
  }
#define SY_CUDA_ATTENTION(key, value, in_key, tile_rows)                                          \
  if (is(key, value, in_key, tile_rows)) {                                                        \
    return LaunchAttention<AttentionShape<key, value, in_key, tile_rows, 2>>(args, runs, stream); \
  }
  SY_CUDA_ATTENTION(576, 512, true, 64)
  SY_CUDA_ATTENTION(128, 128, false, 16)
  SY_CUDA_ATTENTION(128, 128, false, 64)
  SY_CUDA_ATTENTION(64, 64, false, 16)
  SY_CUDA_ATTENTION(64, 64, false, 64)
  SY_CUDA_ATTENTION(80, 64, true, 16)  // tiny-r1, and those of the tests
  SY_CUDA_ATTENTION(40, 32, true, 16)
  SY_CUDA_ATTENTION(24, 24, false, 16)
  SY_CUDA_ATTENTION(16, 16, false, 16)
#undef SY_CUDA_ATTENTION
  return cudaErrorInvalidValue;
}

}  // namespace switchyard::cuda
