// Weights of integers with AMX: the integers of sixteen rows and sixteen outputs are a product of
// two tiles. Few rows are better off with VNNI.
#include "services/kernels/cpu/targets.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "services/kernels/cpu/target.h"
#include "services/kernels/cpu/tiles.h"

// sums += rows · weights, both signed
#define SY_TILE_DOT_INT8(sums, rows, weights) \
  __asm__ volatile("tdpbssd %%tmm" #weights ", %%tmm" #rows ", %%tmm" #sums ::)

SY_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
namespace switchyard::kernels {
namespace {
constexpr int kTileRows = 16, kFewRows = 8;

// 0 and 1: sums. 2 and 3: sixteen rows of a sub-block, its eight quads of weights. 4 and 5: half of
// that.
constexpr TileConfig kInt8Tiles = {.row_bytes = {64, 64, 32, 64, 16, 64},
                                   .rows = {16, 16, 16, 8, 16, 4}};

// Each builds on those before it.
// clang-format off
#include "services/kernels/cpu/int8_lanes_avx512.inc"
#include "services/kernels/cpu/int8_formats.inc"
#include "services/kernels/cpu/int8_tiles.inc"
#include "services/kernels/cpu/int8_packed.inc"
// clang-format on

struct alignas(64) TileSums {
  int32_t at[kTileRows][kOutputs];
};

SY_INLINE void Product(const int8_t* x, int64_t stride, const uint8_t* w, TileSums& sums) {
  SY_TILE_ZERO(0);
  SY_TILE_LOAD(2, x, stride);
  SY_TILE_LOAD(3, w, int64_t{64});
  SY_TILE_DOT_INT8(0, 2, 3);
  SY_TILE_STORE(0, &sums, int64_t{64});
}

// Of the halves of a sub-block.
SY_INLINE void HalfProducts(const int8_t* x, int64_t stride, const uint8_t* w, TileSums& first,
                            TileSums& second) {
  SY_TILE_ZERO(0);
  SY_TILE_LOAD(4, x, stride);
  SY_TILE_LOAD(5, w, int64_t{64});
  SY_TILE_DOT_INT8(0, 4, 5);
  SY_TILE_STORE(0, &first, int64_t{64});
  SY_TILE_ZERO(1);
  SY_TILE_LOAD(4, x + 16, stride);
  SY_TILE_LOAD(5, w + 256, int64_t{64});
  SY_TILE_DOT_INT8(1, 4, 5);
  SY_TILE_STORE(1, &second, int64_t{64});
}

// Sixteen rows over the first `pieces` sub-blocks of a chunk; y: [row][output].
template <typename K>
void TileOverChunk(const Chunk& chunk, int pieces, const QuantizedRow& x, int64_t row_bytes,
                   bool begin, float* y) {
  F acc[kTileRows];
  SY_UNROLL
  for (int m = 0; m < kTileRows; ++m) acc[m] = begin ? ZeroF() : LoadF(y + m * kOutputs);
  const int64_t row_floats = row_bytes / 4;
  TileSums sums[2][K::kHalves ? 2 : 1];
  for (int b = 0; b < pieces; ++b) {
    TileSums* now = sums[b & 1];
    if constexpr (K::kHalves) {
      HalfProducts(x.q + b * kSubBlock, row_bytes, chunk.w[b][0], now[0], now[1]);
    } else {
      Product(x.q + b * kSubBlock, row_bytes, chunk.w[b][0], now[0]);
    }
    const F d = LoadF(chunk.d[b]);
    const float *scale = x.scale + b, *nmin = x.nmin + b;
    SY_UNROLL
    for (int m = 0; m < kTileRows; ++m) {
      F sum = ToFloats(LoadI(now[0].at[m]));
      if constexpr (K::kHalves) {
        sum = MulF(sum, LoadF(chunk.half[b][0]));
        sum = FmaF(ToFloats(LoadI(now[1].at[m])), LoadF(chunk.half[b][1]), sum);
      }
      acc[m] = FmaF(sum, MulF(BroadcastF(scale[m * row_floats]), d), acc[m]);
      if constexpr (K::kMin) {
        acc[m] = FmaF(BroadcastF(nmin[m * row_floats]), LoadF(chunk.min[b]), acc[m]);
      }
    }
  }
  SY_UNROLL
  for (int m = 0; m < kTileRows; ++m) StoreF(acc[m], y + m * kOutputs);
}

template <typename K>
struct TileWalk {
  static constexpr bool kSigned = true;
  static void Run(const Chunk& chunk, int pieces, const QuantizedRows& x, int64_t piece, int64_t m0,
                  int64_t m1, float* y) {
    for (; m0 < m1; m0 += kTileRows, y += kTileRows * kOutputs) {
      TileOverChunk<K>(chunk, pieces, x.row(m0).At(piece), QuantizedRows::RowBytes(x.in),
                       piece == 0, y);
    }
  }
};

#include "services/kernels/cpu/int8_outputs.inc"

}  // namespace

void MatMulInt8Amx(const MatMulTask& task, const QuantizedRows& x, int64_t m0, int64_t m1,
                   int64_t n0, int64_t n1, float* scratch) {
  if (m1 - m0 < kFewRows) return MatMulInt8Vnni(task, x, m0, m1, n0, n1, scratch);
  ConfigureTiles(kInt8Tiles);
  MatMulInt8<TileWalk>(task, x, m0, m1, n0, n1, scratch);
}

}  // namespace switchyard::kernels
SY_TARGET_END
#endif
