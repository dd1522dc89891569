// Online-softmax attention over a paged bf16 cache, as services/kernels/kernels.h lays it out, for
// MLA (absorbed: one key of 576, whose first 512 columns are the value) and GQA.
//
// A block of threads takes a tile of queries, [queries x heads of one key head] padded to kRows,
// over the keys of one split: tiles of 64 keys, copied ahead into swizzled shared memory, each used
// twice where the value lies in the key. Warps share the scores out by rows and keys, and the sums
// of values by columns; weights pass between them through shared memory as bf16.
//
// What limits it: 16 rows read a key's 1152 bytes for 35 kFLOP, so that bandwidth does, and the
// copies of a tile run while the one before is computed (queries stay in registers, which leaves
// shared memory for a third stage). 64 rows fill a multiprocessor's registers with sums [64, 512];
// there it is the reading of operands from shared memory: 96 bytes a column of 8 keys for scores,
// 32 for values.
//
// Sameness: splits and tiles of keys begin at absolute multiples of split_keys and 64. A product is
// one chain over its inputs ascending, the weights of a tile are summed as a binary tree over its
// keys, tiles are added ascending, then splits are. A key that is not seen adds exactly nothing. So
// the bits of a query depend neither on kRows and the number of stages, nor on the queries of its
// tile, nor on whether splits are computed side by side or one after the other. (What a compiler
// may fuse in one kernel and not in another is written so that it cannot.)
#pragma once

#include "services/kernels/cuda/ptx.cuh"
#include "services/kernels/cuda/tiles.h"

namespace switchyard::cuda {

inline constexpr int kAttentionThreads = 256;
inline constexpr int kKeyTile = 64;
inline constexpr float kLog2E = 1.44269504088896340736f;

// Rows [first, first + count) are queries of one sequence at ascending positions; none: no work.
struct QueryRun {
  int32_t first = 0, count = 0;
  int64_t table = 0;  // where the sequence's block table begins in AttentionArgs::tables
};

struct AttentionArgs {
  const float* q = nullptr;  // [rows, heads, key_dim], rounded to bf16 inside
  void* out = nullptr;       // [rows, heads, value_dim], float32 or bf16
  bool out_bf16 = false;
  const QueryRun* runs = nullptr;      // [grid.y], none of more than QueriesATile rows
  const int32_t* positions = nullptr;  // [rows]
  const int32_t* tables = nullptr;
  const unsigned char* cache = nullptr;  // block 0 of this layer
  int64_t block_stride_bytes = 0;
  int32_t block_shift = 5;  // 2^block_shift tokens a block
  int32_t rows = 0;
  int32_t heads = 0, kv_heads = 0;
  float scale = 0;
  int32_t window = 0;            // 0: none
  const float* sinks = nullptr;  // [heads] or null
  // A multiple of kKeyTile: of the model, not of the call, as sums depend on it.
  int32_t split_keys = 1024;
  // Splits that are computed side by side, [grid.z]: no query has more. 1: one block walks them.
  int32_t slots = 1;
  float* partial = nullptr;  // [rows, heads, slots, value_dim]
  float2* stats = nullptr;   // [rows, heads, slots], where slots > 1
};

SY_CUDA_BOTH inline int32_t FirstKey(int32_t position, int32_t window) {
  return window > 0 && position >= window ? position - window + 1 : 0;
}
SY_CUDA_BOTH inline int32_t FirstSplit(const AttentionArgs& args, int32_t position) {
  return FirstKey(position, args.window) / args.split_keys;
}
SY_CUDA_BOTH inline int32_t LastSplit(const AttentionArgs& args, int32_t position) {
  return position / args.split_keys;
}

// Splits of a run between its first and last position, both inclusive: `slots` are at least these.
SY_CUDA_BOTH inline int32_t SplitsOfRun(const AttentionArgs& args, int32_t first, int32_t last) {
  return LastSplit(args, last) - FirstSplit(args, first) + 1;
}
// The most rows of a run.
SY_CUDA_BOTH inline int32_t QueriesATile(int32_t heads, int32_t kv_heads, int32_t rows) {
  const int32_t group = heads / kv_heads;
  return group < rows ? rows / group : 1;
}

// Blocks along grid.x.
SY_CUDA_BOTH inline int32_t HeadTiles(int32_t heads, int32_t kv_heads, int32_t rows) {
  return kv_heads * ((heads / kv_heads + rows - 1) / rows);
}

template <int kKeyDim_, int kValueDim_, bool kValuesInKey_, int kRows_, int kStages_>
struct AttentionShape {
  static constexpr int kKeyDim = kKeyDim_, kValueDim = kValueDim_, kRows = kRows_;
  static constexpr bool kValuesInKey = kValuesInKey_;
  static constexpr int kStages = kStages_;
  static_assert(kRows == 16 || kRows == 32 || kRows == 64);
  static_assert(kKeyDim % 8 == 0 &&
                (kValueDim % 64 == 0 || (kValueDim < 64 && kValueDim % 8 == 0)));

  static constexpr int kWarps = kAttentionThreads / 32;
  static constexpr int kRowTiles = kRows / 16;
  static constexpr int kKeyWarps = kWarps / kRowTiles;  // that share the keys of a row tile
  static constexpr int kKeyPieces = kKeyTile / kKeyWarps / 8;
  static constexpr int kColumnPieces = kValueDim < 64 ? 1 : kValueDim / 64;  // of a warp's sums
  static constexpr int kColumns = kColumnPieces * 8;
  static constexpr int kSlabs = (kKeyDim + 15) / 16;  // the last may be half zeros

  // In shared memory; chunks are swizzled within 128 bytes.
  static constexpr int kKeyRowBytes = (kKeyDim + 63) / 64 * 128;
  static constexpr int kValueRowBytes = kValuesInKey ? kKeyRowBytes : (kValueDim + 63) / 64 * 128;
  static constexpr int kKeyBytes = kKeyTile * kKeyRowBytes;
  static constexpr int kStageBytes = kKeyBytes + (kValuesInKey ? 0 : kKeyTile * kValueRowBytes);
  static constexpr bool kQueriesInRegisters = kRows == 16;
  static constexpr int kQueryBytes = kQueriesInRegisters ? 0 : kRows * kKeyRowBytes;
  static constexpr int kWeightBytes = kRows * kKeyTile * 2;
  static constexpr int kStatFloats = kRows * (2 * kKeyWarps + 4);
  static constexpr int kSharedBytes =
      kStages * kStageBytes + kQueryBytes + kWeightBytes + kStatFloats * 4;
};

// The block's shared memory.
template <typename Shape>
struct AttentionShared {
  unsigned char *stages, *queries, *weights;
  float *maxima, *sums;                // [kKeyWarps][kRows] of a tile
  float *rescale, *keep, *take, *end;  // [kRows]

  __device__ explicit AttentionShared(unsigned char* base)
      : stages(base),
        queries(stages + Shape::kStages * Shape::kStageBytes),
        weights(queries + Shape::kQueryBytes),
        maxima(reinterpret_cast<float*>(weights + Shape::kWeightBytes)),
        sums(maxima + Shape::kKeyWarps * Shape::kRows),
        rescale(sums + Shape::kKeyWarps * Shape::kRows),
        keep(rescale + Shape::kRows),
        take(keep + Shape::kRows),
        end(take + Shape::kRows) {}
};

// Which query and head a row of the tile is.
struct QueryTile {
  QueryRun run;
  int kv_head = 0, head = 0, heads = 0;

  __device__ __forceinline__ int Query(int row) const {
    const int query = row / heads;
    return query < run.count ? run.first + query : -1;
  }
  __device__ __forceinline__ int64_t Vector(int row, int all_heads) const {  // of [rows, heads]
    return static_cast<int64_t>(Query(row)) * all_heads + head + row % heads;
  }
};

template <int kRows>
__device__ __forceinline__ QueryTile TileOf(const AttentionArgs& args, int block,
                                            const QueryRun& run) {
  const int group = args.heads / args.kv_heads;
  const int tiles = (group + kRows - 1) / kRows;
  const int first = block % tiles * kRows;
  QueryTile tile;
  tile.run = run;
  tile.kv_head = block / tiles;
  tile.head = tile.kv_head * group + first;
  tile.heads = group - first < kRows ? group - first : kRows;
  return tile;
}

// Softmax over what has been seen: exponents are of two.
struct SoftmaxState {
  float max = -INFINITY, sum = 0;
};

__device__ __forceinline__ float Base(float max) { return max == -INFINITY ? 0.0f : max; }

// Adds a split behind those of `all`. Sums of values follow as fmaf(all, x, split · y).
__device__ __forceinline__ float2 Fold(SoftmaxState& all, float max, float sum) {
  const float base = Base(fmaxf(all.max, max));
  const float2 factors = {exp2f(all.max - base), exp2f(max - base)};
  all.sum = fmaf(all.sum, factors.x, sum * factors.y);
  all.max = fmaxf(all.max, max);
  return factors;
}
__device__ __forceinline__ float FoldValue(float all, float split, float2 factors) {
  return fmaf(all, factors.x, split * factors.y);
}
// What sums of values are multiplied with at last.
__device__ __forceinline__ float EndFactor(const SoftmaxState& all, const float* sinks, int head) {
  if (sinks == nullptr) return 1.0f / all.sum;
  const float sink = __fmul_rn(sinks[head], kLog2E);
  const float base = fmaxf(all.max, sink);
  const float factor = exp2f(all.max - base);
  return factor / fmaf(all.sum, factor, exp2f(sink - base));
}

__device__ __forceinline__ void StorePair(const AttentionArgs& args, int64_t at, float x, float y) {
  if (args.out_bf16) {
    *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(args.out) + at) = Pack2(x, y);
  } else {
    *reinterpret_cast<float2*>(static_cast<float*>(args.out) + at) = {x, y};
  }
}

// Keys (and values) [tile * 64, + 64) of the sequence, zeros for those outside [first, last].
template <typename Shape>
__device__ __forceinline__ void LoadKeys(const AttentionArgs& args, const QueryTile& queries,
                                         int tile, int first, int last, unsigned char* stage) {
  constexpr int kKeyChunks = Shape::kSlabs * 2;
  constexpr int kChunks = kKeyChunks + (Shape::kValuesInKey ? 0 : Shape::kValueDim / 8);
  const int32_t* const table = args.tables + queries.run.table;
  const int64_t record_bytes =
      args.kv_heads * 2 * (Shape::kKeyDim + (Shape::kValuesInKey ? 0 : Shape::kValueDim));
  const int key_bytes = queries.kv_head * Shape::kKeyDim * 2;
  const int value_bytes = (args.kv_heads * Shape::kKeyDim + queries.kv_head * Shape::kValueDim) * 2;
  for (int c = static_cast<int>(threadIdx.x); c < kKeyTile * kChunks; c += kAttentionThreads) {
    const int key = c / kChunks, chunk = c % kChunks, position = tile * kKeyTile + key;
    const bool inside = position >= first && position <= last &&
                        (chunk >= kKeyChunks || chunk * 8 < Shape::kKeyDim);
    const bool is_key = Shape::kValuesInKey || chunk < kKeyChunks;
    const int at = is_key ? chunk : chunk - kKeyChunks;
    const unsigned char* from = args.cache;
    if (inside) {
      const int slot = position & ((1 << args.block_shift) - 1);
      from += table[position >> args.block_shift] * args.block_stride_bytes + slot * record_bytes +
              (is_key ? key_bytes : value_bytes) + at * 16;
    }
    unsigned char* const to = is_key ? stage + key * Shape::kKeyRowBytes
                                     : stage + Shape::kKeyBytes + key * Shape::kValueRowBytes;
    CopyAsync(to + SwizzledChunk(key, at) * 16, from, inside ? 16 : 0);
  }
}

// Rounded queries: of 16 rows as fragments in every warp, else in shared memory.
template <typename Shape>
struct Queries {
  uint32_t fragments[Shape::kQueriesInRegisters ? Shape::kSlabs : 1][4] = {};

  __device__ __forceinline__ void Load(const AttentionArgs& args, const QueryTile& tile,
                                       unsigned char* shared) {
    const auto vector = [&](int row) {
      return tile.Query(row) < 0 ? nullptr : args.q + tile.Vector(row, args.heads) * Shape::kKeyDim;
    };
    if constexpr (Shape::kQueriesInRegisters) {
      const int lane = static_cast<int>(threadIdx.x % 32);
      const float* const rows[2] = {vector(lane / 4), vector(lane / 4 + 8)};
      SY_CUDA_UNROLL
      for (int slab = 0; slab < Shape::kSlabs; ++slab) {
        SY_CUDA_UNROLL
        for (int i = 0; i < 4; ++i) {
          float2 x = {0, 0};
          if (rows[i % 2] != nullptr && slab * 16 + i / 2 * 8 < Shape::kKeyDim) {
            x = *reinterpret_cast<const float2*>(rows[i % 2] + slab * 16 + i / 2 * 8 +
                                                 lane % 4 * 2);
          }
          fragments[slab][i] = Pack2(x.x, x.y);
        }
      }
    } else {
      constexpr int kChunks = Shape::kSlabs * 2;
      for (int c = static_cast<int>(threadIdx.x); c < Shape::kRows * kChunks;
           c += kAttentionThreads) {
        const int row = c / kChunks, chunk = c % kChunks;
        float4 x = {0, 0, 0, 0}, y = {0, 0, 0, 0};
        if (const float* const from = vector(row); from != nullptr && chunk * 8 < Shape::kKeyDim) {
          x = *reinterpret_cast<const float4*>(from + chunk * 8);
          y = *reinterpret_cast<const float4*>(from + chunk * 8 + 4);
        }
        *reinterpret_cast<uint4*>(shared + row * Shape::kKeyRowBytes +
                                  SwizzledChunk(row, chunk) * 16) = {
            Pack2(x.x, x.y), Pack2(x.z, x.w), Pack2(y.x, y.y), Pack2(y.z, y.w)};
      }
    }
  }
};

// Fragment of 16 rows by 16 columns (two chunks) from rows of bytes in shared memory.
__device__ __forceinline__ void LoadRowFragment(uint32_t (&a)[4], const unsigned char* rows,
                                                int row_bytes, int row, int slab) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int r = row + lane % 16;
  LoadMatrices(a, rows + r * row_bytes + SwizzledChunk(r, slab * 2 + lane / 16) * 16);
}

// Scores of the warp's 16 rows with its keys, not scaled.
template <typename Shape>
__device__ __forceinline__ void Score(const Queries<Shape>& queries, const unsigned char* shared,
                                      const unsigned char* keys,
                                      float (&scores)[Shape::kKeyPieces][4]) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int first = warp / Shape::kRowTiles * Shape::kKeyPieces * 8;
  SY_CUDA_UNROLL
  for (int j = 0; j < Shape::kKeyPieces; ++j) {
    scores[j][0] = scores[j][1] = scores[j][2] = scores[j][3] = 0;
  }
  if constexpr (Shape::kKeyPieces == 1) {
    static_assert(Shape::kQueriesInRegisters);
    const int key = first + lane % 8;
    SY_CUDA_UNROLL
    for (int slab = 0; slab < Shape::kSlabs; slab += 2) {
      uint32_t b[4];
      LoadMatrices(b,
                   keys + key * Shape::kKeyRowBytes + SwizzledChunk(key, slab * 2 + lane / 8) * 16);
      const uint32_t(&x)[4] = queries.fragments[slab];
      Mma(scores[0], x[0], x[1], x[2], x[3], b[0], b[1]);
      if (slab + 1 == Shape::kSlabs) break;
      const uint32_t(&y)[4] = queries.fragments[slab + 1];
      Mma(scores[0], y[0], y[1], y[2], y[3], b[2], b[3]);
    }
  } else {
    const int row = warp % Shape::kRowTiles * 16;
    SY_CUDA_UNROLL
    for (int slab = 0; slab < Shape::kSlabs; ++slab) {
      uint32_t a[4];
      LoadRowFragment(a, shared, Shape::kKeyRowBytes, row, slab);
      SY_CUDA_UNROLL
      for (int j = 0; j < Shape::kKeyPieces; j += 2) {
        const int key = first + j * 8 + lane / 16 * 8 + lane % 8;
        uint32_t b[4];
        LoadMatrices(
            b, keys + key * Shape::kKeyRowBytes + SwizzledChunk(key, slab * 2 + lane / 8 % 2) * 16);
        Mma(scores[j], a[0], a[1], a[2], a[3], b[0], b[1]);
        Mma(scores[j + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
      }
    }
  }
}

// The first n of x, a power of two of them, summed as a binary tree.
template <int n>
__device__ __forceinline__ float TreeSum(float (&x)[n]) {
  SY_CUDA_UNROLL
  for (int step = 1; step < n; step *= 2) {
    SY_CUDA_UNROLL
    for (int j = 0; j + step < n; j += 2 * step) x[j] += x[j + step];
  }
  return x[0];
}

// What threads remember of softmax between tiles of a split.
struct ScoreRows {
  int position[2];          // of the rows that the thread has scores of; -1: none
  float max[2];             // of the split so far
  SoftmaxState split, all;  // of row threadIdx.x, where there is one
};

// From scores to weights in shared memory, and by what the sums so far are multiplied. All threads
// of the block take part; those that come out of it have seen all weights.
template <typename Shape>
__device__ __forceinline__ void Weigh(const AttentionArgs& args, int tile,
                                      const AttentionShared<Shape>& shared,
                                      float (&scores)[Shape::kKeyPieces][4], ScoreRows& rows) {
  constexpr int kRows = Shape::kRows, kKeyWarps = Shape::kKeyWarps, kPieces = Shape::kKeyPieces;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  const int key_warp = warp / Shape::kRowTiles, row = warp % Shape::kRowTiles * 16 + g;
  const int first_piece = key_warp * kPieces;
  const float scale = args.scale * kLog2E;
  SY_CUDA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int position = rows.position[half], lowest = FirstKey(position, args.window);
    float max = -INFINITY;
    SY_CUDA_UNROLL
    for (int j = 0; j < kPieces; ++j) {
      SY_CUDA_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int key = tile * kKeyTile + (first_piece + j) * 8 + t * 2 + i;
        float& score = scores[j][half * 2 + i];
        score = key <= position && key >= lowest ? __fmul_rn(score, scale) : -INFINITY;
        max = fmaxf(max, score);
      }
    }
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
    if (t == 0) shared.maxima[key_warp * kRows + row + half * 8] = max;
  }
  __syncthreads();
  SY_CUDA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int r = row + half * 8;
    SY_CUDA_UNROLL
    for (int w = 0; w < kKeyWarps; ++w) {
      rows.max[half] = fmaxf(rows.max[half], shared.maxima[w * kRows + r]);
    }
    const float base = Base(rows.max[half]);
    float sums[kPieces];
    SY_CUDA_UNROLL
    for (int j = 0; j < kPieces; ++j) {
      const float x = exp2f(scores[j][half * 2] - base), y = exp2f(scores[j][half * 2 + 1] - base);
      *reinterpret_cast<uint32_t*>(shared.weights + r * kKeyTile * 2 +
                                   SwizzledChunk(r, first_piece + j) * 16 + t * 4) = Pack2(x, y);
      sums[j] = __fadd_rn(x, y);
      sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], 1);
      sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], 2);
    }
    const float sum = TreeSum(sums);
    if (t == 0) shared.sums[key_warp * kRows + r] = sum;
  }
  float rescale = 1;
  if (thread < kRows) {
    float max = rows.split.max;
    SY_CUDA_UNROLL
    for (int w = 0; w < kKeyWarps; ++w) max = fmaxf(max, shared.maxima[w * kRows + thread]);
    rescale = exp2f(Base(rows.split.max) - Base(max));
    if (rows.split.max == -INFINITY) rescale = 1;  // of sums that are 0
    rows.split.max = max;
    shared.rescale[thread] = rescale;
  }
  __syncthreads();
  if (thread < kRows) {
    float sums[kKeyWarps];
    SY_CUDA_UNROLL
    for (int w = 0; w < kKeyWarps; ++w) sums[w] = shared.sums[w * kRows + thread];
    rows.split.sum = fmaf(rows.split.sum, rescale, TreeSum(sums));
  }
}

// sums = sums · rescale + weights · values, of all rows and the warp's columns.
template <typename Shape>
__device__ __forceinline__ void AddValues(
    const AttentionShared<Shape>& shared, const unsigned char* values,
    float (&sums)[Shape::kRowTiles][Shape::kColumnPieces][4]) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  SY_CUDA_UNROLL
  for (int m = 0; m < Shape::kRowTiles; ++m) {
    const float low = shared.rescale[m * 16 + lane / 4],
                high = shared.rescale[m * 16 + lane / 4 + 8];
    if (low == 1.0f && high == 1.0f) continue;
    SY_CUDA_UNROLL
    for (int n = 0; n < Shape::kColumnPieces; ++n) {
      sums[m][n][0] *= low, sums[m][n][1] *= low;
      sums[m][n][2] *= high, sums[m][n][3] *= high;
    }
  }
  const int column = warp * Shape::kColumnPieces;  // in chunks
  if (column * 8 >= Shape::kValueDim) return;
  const auto value = [&](int key, int chunk) {
    return values + key * Shape::kValueRowBytes + SwizzledChunk(key, chunk) * 16;
  };
  SY_CUDA_UNROLL
  for (int slab = 0; slab < kKeyTile / 16; ++slab) {
    uint32_t a[Shape::kRowTiles][4];
    SY_CUDA_UNROLL
    for (int m = 0; m < Shape::kRowTiles; ++m) {
      LoadRowFragment(a[m], shared.weights, kKeyTile * 2, m * 16, slab);
    }
    SY_CUDA_UNROLL
    for (int n = 0; n < Shape::kColumnPieces; n += 2) {
      // Keys 0-7 and 8-15 of the slab, of two chunks; where the warp has but one, that twice.
      constexpr bool kTwo = Shape::kColumnPieces > 1;
      uint32_t b[4];
      LoadTransposed(b, value(slab * 16 + lane % 16, column + n + (kTwo ? lane / 16 : 0)));
      SY_CUDA_UNROLL
      for (int m = 0; m < Shape::kRowTiles; ++m) {
        Mma(sums[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
        if constexpr (kTwo) {
          Mma(sums[m][n + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
        }
      }
    }
  }
}

// The end of a split for the row of a thread: what its sums are to be multiplied with.
template <typename Shape>
__device__ __forceinline__ void EndRow(const AttentionArgs& args, const QueryTile& tile, int split,
                                       const AttentionShared<Shape>& shared, ScoreRows& rows) {
  const int row = static_cast<int>(threadIdx.x);
  if (row >= Shape::kRows || tile.Query(row) < 0) return;
  const int position = args.positions[tile.Query(row)];
  const int first = FirstSplit(args, position), last = LastSplit(args, position);
  if (split < first || split > last) return;
  float2 factors = {0, 1};
  if (args.slots > 1 && first != last) {
    args.stats[tile.Vector(row, args.heads) * args.slots + split - first] = {rows.split.max,
                                                                             rows.split.sum};
  } else {
    factors = Fold(rows.all, rows.split.max, rows.split.sum);
    if (split == last) {
      shared.end[row] = EndFactor(rows.all, args.sinks, tile.head + row % tile.heads);
    }
  }
  shared.keep[row] = factors.x;
  shared.take[row] = factors.y;
}

// The end of a split: its sums go where the others of the query find them, or out.
template <typename Shape>
__device__ __forceinline__ void EndSplit(const AttentionArgs& args, const QueryTile& tile,
                                         int split, const AttentionShared<Shape>& shared,
                                         ScoreRows& rows,
                                         float (&sums)[Shape::kRowTiles][Shape::kColumnPieces][4]) {
  EndRow<Shape>(args, tile, split, shared, rows);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int column = warp * Shape::kColumns + lane % 4 * 2;
  SY_CUDA_UNROLL
  for (int i = 0; i < Shape::kRowTiles * 2; ++i) {
    const int row = i * 8 + lane / 4;
    if (tile.Query(row) < 0 || column >= Shape::kValueDim) continue;
    const int position = args.positions[tile.Query(row)];
    const int first = FirstSplit(args, position), last = LastSplit(args, position);
    if (split < first || split > last) continue;
    const bool apart = args.slots > 1 && first != last;
    const bool ends = !apart && split == last, goes_on = !apart && split > first;
    const int64_t vector = tile.Vector(row, args.heads);
    const int64_t slot = vector * args.slots + (apart ? split - first : 0);
    const float2 factors = {shared.keep[row], shared.take[row]};
    const float end = ends ? shared.end[row] : 1.0f;
    SY_CUDA_UNROLL
    for (int n = 0; n < Shape::kColumnPieces; ++n) {
      auto* const at =
          reinterpret_cast<float2*>(args.partial + slot * Shape::kValueDim + column + n * 8);
      float2 x = goes_on ? *at : float2{0, 0};
      x.x = FoldValue(x.x, sums[i / 2][n][i % 2 * 2], factors);
      x.y = FoldValue(x.y, sums[i / 2][n][i % 2 * 2 + 1], factors);
      if (ends) {
        StorePair(args, vector * Shape::kValueDim + column + n * 8, x.x * end, x.y * end);
      } else {
        *at = x;
      }
    }
  }
  SY_CUDA_UNROLL
  for (int m = 0; m < Shape::kRowTiles; ++m) {
    SY_CUDA_UNROLL
    for (int n = 0; n < Shape::kColumnPieces; ++n) {
      sums[m][n][0] = sums[m][n][1] = sums[m][n][2] = sums[m][n][3] = 0;
    }
  }
  rows.max[0] = rows.max[1] = -INFINITY;
  rows.split = {};
}

// grid: (kv_heads x tiles of a key head's heads, runs, slots).
template <typename Shape>
__global__ void __launch_bounds__(kAttentionThreads) Attend(const AttentionArgs args) {
  SY_CUDA_SHARED(bytes);
  const AttentionShared<Shape> shared(bytes);
  const QueryRun run = args.runs[blockIdx.y];
  if (run.count == 0) return;
  const QueryTile queries = TileOf<Shape::kRows>(args, static_cast<int>(blockIdx.x), run);
  const int first_key = FirstKey(args.positions[run.first], args.window);
  const int last_key = args.positions[run.first + run.count - 1];
  int begin = first_key, end = last_key;
  if (args.slots > 1) {
    const int split = first_key / args.split_keys + static_cast<int>(blockIdx.z);
    if (split * args.split_keys > last_key) return;
    begin = max(begin, split * args.split_keys);
    end = min(end, (split + 1) * args.split_keys - 1);
  }
  const int tiles = end / kKeyTile + 1;
  const auto load = [&](int tile) {
    if (tile < tiles) {
      LoadKeys<Shape>(args, queries, tile, first_key, last_key,
                      shared.stages + tile % Shape::kStages * Shape::kStageBytes);
    }
    CommitCopies();
  };
  const int first_tile = begin / kKeyTile;
  for (int i = 0; i < Shape::kStages - 1; ++i) load(first_tile + i);

  Queries<Shape> fragments;
  fragments.Load(args, queries, shared.queries);
  ScoreRows rows;
  SY_CUDA_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int query = queries.Query(static_cast<int>(threadIdx.x / 32) % Shape::kRowTiles * 16 +
                                    static_cast<int>(threadIdx.x % 32) / 4 + half * 8);
    rows.position[half] = query < 0 ? -1 : args.positions[query];
    rows.max[half] = -INFINITY;
  }
  float sums[Shape::kRowTiles][Shape::kColumnPieces][4] = {};
  const int tiles_a_split = args.split_keys / kKeyTile;
  for (int tile = first_tile; tile < tiles; ++tile) {
    WaitCopies<Shape::kStages - 2>();
    __syncthreads();  // the tile is there, and nobody reads the one before any more
    load(tile + Shape::kStages - 1);
    const unsigned char* const keys = shared.stages + tile % Shape::kStages * Shape::kStageBytes;
    float scores[Shape::kKeyPieces][4];
    Score<Shape>(fragments, shared.queries, keys, scores);
    Weigh<Shape>(args, tile, shared, scores, rows);
    AddValues<Shape>(shared, Shape::kValuesInKey ? keys : keys + Shape::kKeyBytes, sums);
    if ((tile + 1) % tiles_a_split == 0 || tile + 1 == tiles) {
      EndSplit<Shape>(args, queries, tile / tiles_a_split, shared, rows, sums);
    }
  }
  WaitCopies<0>();
}

inline constexpr int kCombineThreads = 128;

// Adds the splits of the queries that have several, ascending. A thread takes four columns of a
// vector: grid covers rows · heads · value_dim / 4.
template <int kValueDim>
__global__ void __launch_bounds__(kCombineThreads) CombineSplits(const AttentionArgs args) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kCombineThreads + threadIdx.x;
  const int64_t vector = item / (kValueDim / 4);
  const int column = static_cast<int>(item % (kValueDim / 4)) * 4;
  if (vector >= static_cast<int64_t>(args.rows) * args.heads) return;
  const int position = args.positions[vector / args.heads];
  if (position < 0) return;
  const int splits = LastSplit(args, position) - FirstSplit(args, position) + 1;
  if (splits == 1) return;
  SoftmaxState all;
  float4 sum = {0, 0, 0, 0};
  for (int s = 0; s < splits; ++s) {
    const float2 stats = args.stats[vector * args.slots + s];
    const float2 factors = Fold(all, stats.x, stats.y);
    const float4 x = *reinterpret_cast<const float4*>(
        args.partial + (vector * args.slots + s) * kValueDim + column);
    sum = {FoldValue(sum.x, x.x, factors), FoldValue(sum.y, x.y, factors),
           FoldValue(sum.z, x.z, factors), FoldValue(sum.w, x.w, factors)};
  }
  const float end = EndFactor(all, args.sinks, static_cast<int>(vector % args.heads));
  StorePair(args, vector * kValueDim + column, sum.x * end, sum.y * end);
  StorePair(args, vector * kValueDim + column + 2, sum.z * end, sum.w * end);
}

}  // namespace switchyard::cuda
