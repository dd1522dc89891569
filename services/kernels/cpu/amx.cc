// The class amx: bf16 rows with bf16 kOutIn weights by tdpbf16ps. Everything else of the class is
// the AVX-512 of the fma class.
//
// A tile of weights, sixteen outputs × 32 values of k, is loaded from where it lies; the rows of x
// are the other operand and are packed first: of each pair of k its value in every row, side by
// side. What comes out is sixteen outputs × rows, turned over on its way to y.
#include "services/kernels/cpu/targets.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "services/base/ceil_div.h"
#include "services/kernels/cpu/target.h"
#include "services/kernels/cpu/tiles.h"

SY_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
namespace switchyard::kernels {
namespace {

#include "services/kernels/cpu/amx_tiles.inc"

constexpr int64_t kTileOutputs = 16, kRowsWide = 16, kRowsNarrow = 4;
constexpr int64_t kGroupTiles = 4;  // tiles of outputs whose sums are held at once
// From this length of k on weights are foreseen to come from afar: they are asked for ahead, and
// fewer rows of them are passed at once.
constexpr int64_t kLongK = 512, kLongGroupTiles = 2;

// Up to sixteen rows, packed. Where they are four or fewer a tile takes the pairs behind them along
// and what comes of those is dropped: packing is then a quarter of the work.
struct PackedRows {
  std::byte* data;
  int64_t count;

  int64_t width() const { return count <= kRowsNarrow ? kRowsNarrow : kRowsWide; }
  int64_t pair_bytes() const { return width() * 4; }  // one pair of k in all rows
  int64_t block_bytes() const { return kTileK / 2 * pair_bytes(); }
};

void PackWide(const bf16* const* x, int64_t count, int64_t in, std::byte* out) {
  for (int64_t k = 0; k < in; k += kTileK, out += kTileBytes) {
    __m512i v[16];
    SY_UNROLL
    for (int m = 0; m < 16; ++m) {
      v[m] = m < count ? LoadPairs(x[m] + k, in - k) : _mm512_setzero_si512();
    }
    StoreTransposed(v, out);
  }
}

// Words i of four vectors side by side: out[q] holds words 4q..4q+3 of each.
SY_INLINE void Interleave(const __m512i* v, __m512i* out) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  const __m512i low_pairs = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512i high_pairs = _mm512_add_epi64(low_pairs, _mm512_set1_epi64(4));
  SY_UNROLL
  for (int half = 0; half < 2; ++half) {
    const __m512i& words = half == 0 ? low : high;
    const __m512i ab = _mm512_permutex2var_epi32(v[0], words, v[1]);
    const __m512i cd = _mm512_permutex2var_epi32(v[2], words, v[3]);
    out[2 * half] = _mm512_permutex2var_epi64(ab, low_pairs, cd);
    out[2 * half + 1] = _mm512_permutex2var_epi64(ab, high_pairs, cd);
  }
}

void PackNarrow(const bf16* const* x, int64_t count, int64_t in, std::byte* out) {
  for (int64_t k = 0; k < in; k += kTileK, out += kTileBytes / 4) {
    __m512i v[4], packed[4];
    SY_UNROLL
    for (int m = 0; m < 4; ++m) {
      v[m] = m < count ? LoadPairs(x[m] + k, in - k) : _mm512_setzero_si512();
    }
    Interleave(v, packed);
    SY_UNROLL
    for (int q = 0; q < 4; ++q) _mm512_store_si512(out + 64 * q, packed[q]);
  }
}

void Pack(const MatMulTask& task, int64_t m0, const PackedRows& rows) {
  const bf16* x[kRowsWide] = {};
  for (int64_t m = 0; m < rows.count; ++m)
    x[m] = reinterpret_cast<const bf16*>(RowAt(task, m0 + m));
  if (rows.count <= kRowsNarrow) {
    PackNarrow(x, rows.count, task.w.in, rows.data);
  } else {
    PackWide(x, rows.count, task.w.in, rows.data);
  }
}

inline Tile TileAt(const WeightView& w, int64_t n, int64_t k, std::byte* copy) {
  const bf16* base = reinterpret_cast<const bf16*>(w.data) + n * w.stride + k;
  return InPlaceOrCopied(base, w.stride, w.out - n, w.in - k, copy);
}

// Sixteen rows of weights side by side are too many streams for the hardware to foresee. Where a
// group of outputs is passed once, a later piece of each of its rows is asked for at each step of
// k; where more rows of x pass it, there is time to ask for all of the next group meanwhile, one
// row of it after the other, which memory gives faster. Asking beyond the matrix does no harm.
class Ahead {
 public:
  // For `passes` of the group [n, n1).
  Ahead(const WeightView& w, int64_t n, int64_t n1, int64_t passes)
      : row_(reinterpret_cast<const char*>(w.data) + (passes == 1 ? n : n1) * w.stride * 2),
        stride_(w.stride * 2),
        row_bytes_(w.in * 2),
        rows_(n1 - n),
        in_group_(passes == 1) {
    if (w.in < kLongK) return;
    const int64_t steps = passes * CeilDiv(w.in, kTileK);
    const int64_t lines = kLongGroupTiles * kTileOutputs * CeilDiv(row_bytes_, 64);
    lines_ = CeilDiv(lines, steps);
  }

  SY_INLINE void Step(int64_t k) {
    if (lines_ == 0) return;
    if (in_group_) return StepInGroup(k);
    for (int64_t i = 0; i < lines_; ++i) {
      _mm_prefetch(row_ + at_, _MM_HINT_T1);
      at_ += 64;
      if (at_ >= row_bytes_) {
        at_ = 0;
        row_ += stride_;
      }
    }
  }

 private:
  // At the end of a row its turn has come to the row `rows_` further down.
  SY_INLINE void StepInGroup(int64_t k) {
    constexpr int64_t kBytesAhead = 8 * kTileK * 2;
    const int64_t at = k * 2 + kBytesAhead;
    const char* from = at < row_bytes_ ? row_ + at : row_ + rows_ * stride_ + at - row_bytes_;
    for (int64_t i = 0; i < rows_; ++i) _mm_prefetch(from + i * stride_, _MM_HINT_T1);
  }

  const char* row_;
  const int64_t stride_, row_bytes_, rows_;
  const bool in_group_;
  int64_t lines_ = 0, at_ = 0;
};

// Sums of up to four tiles of outputs with one set of rows, into `sums`: [tile][output][row].
template <int kTiles>
void DotGroup(const WeightView& w, int64_t n, const PackedRows& rows, Ahead& ahead, std::byte* edge,
              float* sums) {
  const int64_t pair_bytes = rows.pair_bytes();
  const std::byte* x = rows.data;
  SY_TILE_ZERO(0);
  if constexpr (kTiles > 1) SY_TILE_ZERO(1);
  if constexpr (kTiles > 2) SY_TILE_ZERO(2);
  if constexpr (kTiles > 3) SY_TILE_ZERO(3);
  for (int64_t k = 0; k < w.in; k += kTileK, x += rows.block_bytes()) {
    ahead.Step(k);
    SY_TILE_LOAD(4, x, pair_bytes);
    Tile tile = TileAt(w, n, k, edge);
    SY_TILE_LOAD(5, tile.data, tile.stride);
    SY_TILE_DOT(0, 5, 4);
    if constexpr (kTiles > 1) {
      tile = TileAt(w, n + kTileOutputs, k, edge);
      SY_TILE_LOAD(6, tile.data, tile.stride);
      SY_TILE_DOT(1, 6, 4);
    }
    if constexpr (kTiles > 2) {
      tile = TileAt(w, n + 2 * kTileOutputs, k, edge);
      SY_TILE_LOAD(7, tile.data, tile.stride);
      SY_TILE_DOT(2, 7, 4);
    }
    if constexpr (kTiles > 3) {
      tile = TileAt(w, n + 3 * kTileOutputs, k, edge);
      SY_TILE_LOAD(5, tile.data, tile.stride);
      SY_TILE_DOT(3, 5, 4);
    }
  }
  // Rows are stored in ascending order (tilestored is defined so, as it can resume at a row): those
  // of a narrow tile over the dropped end of those before them.
  const int64_t tile_floats = kTileOutputs * rows.width();
  SY_TILE_STORE(0, sums, pair_bytes);
  if constexpr (kTiles > 1) SY_TILE_STORE(1, sums + tile_floats, pair_bytes);
  if constexpr (kTiles > 2) SY_TILE_STORE(2, sums + 2 * tile_floats, pair_bytes);
  if constexpr (kTiles > 3) SY_TILE_STORE(3, sums + 3 * tile_floats, pair_bytes);
}

// Sums of two tiles of outputs with two sets of rows: a load for each product, where one set needs
// half as many again. `sums`: [set][tile][output][row].
void DotPair(const WeightView& w, int64_t n, const PackedRows* rows, Ahead& ahead, std::byte* edge,
             float* sums) {
  const std::byte *x0 = rows[0].data, *x1 = rows[1].data;
  SY_TILE_ZERO(0);
  SY_TILE_ZERO(1);
  SY_TILE_ZERO(2);
  SY_TILE_ZERO(3);
  for (int64_t k = 0; k < w.in; k += kTileK, x0 += kTileBytes, x1 += kTileBytes) {
    ahead.Step(k);
    Tile tile = TileAt(w, n, k, edge);
    SY_TILE_LOAD(6, tile.data, tile.stride);
    SY_TILE_LOAD(4, x0, int64_t{64});
    SY_TILE_DOT(0, 6, 4);
    SY_TILE_LOAD(5, x1, int64_t{64});
    SY_TILE_DOT(2, 6, 5);
    tile = TileAt(w, n + kTileOutputs, k, edge);
    SY_TILE_LOAD(7, tile.data, tile.stride);
    SY_TILE_DOT(1, 7, 4);
    SY_TILE_DOT(3, 7, 5);
  }
  constexpr int64_t kTileFloats = kTileOutputs * kRowsWide;
  SY_TILE_STORE(0, sums, int64_t{64});
  SY_TILE_STORE(1, sums + kTileFloats, int64_t{64});
  SY_TILE_STORE(2, sums + 2 * kTileFloats, int64_t{64});
  SY_TILE_STORE(3, sums + 3 * kTileFloats, int64_t{64});
}

inline __m512 BiasAt(VectorView bias, int64_t n, int64_t outputs) {
  float values[kTileOutputs] = {};
  for (int64_t i = 0; i < outputs; ++i) values[i] = LoadOne(bias, n + i);
  return _mm512_loadu_ps(values);
}

// The sums of one tile, turned over into rows of y.
void StoreTile(const MatMulTask& task, int64_t m0, int64_t n, int64_t n1, const PackedRows& rows,
               const float* sums) {
  __m512i v[16];
  if (rows.count <= kRowsNarrow) {
    // Words of four outputs a vector; the inverse of Interleave, output by output.
    const __m512i low = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(2));
    const __m512i a = _mm512_loadu_si512(sums), b = _mm512_loadu_si512(sums + 16);
    const __m512i c = _mm512_loadu_si512(sums + 32), d = _mm512_loadu_si512(sums + 48);
    const __m512i ab01 = _mm512_permutex2var_epi32(a, low, b);
    const __m512i cd01 = _mm512_permutex2var_epi32(c, low, d);
    const __m512i ab23 = _mm512_permutex2var_epi32(a, high, b);
    const __m512i cd23 = _mm512_permutex2var_epi32(c, high, d);
    v[0] = _mm512_shuffle_i64x2(ab01, cd01, 0x44);
    v[1] = _mm512_shuffle_i64x2(ab01, cd01, 0xee);
    v[2] = _mm512_shuffle_i64x2(ab23, cd23, 0x44);
    v[3] = _mm512_shuffle_i64x2(ab23, cd23, 0xee);
  } else {
    SY_UNROLL
    for (int i = 0; i < 16; ++i) v[i] = _mm512_loadu_si512(sums + 16 * i);
    Transpose(v);
  }
  const int64_t outputs = n1 - n < kTileOutputs ? n1 - n : kTileOutputs;
  const auto mask = static_cast<__mmask16>((1u << outputs) - 1u);
  const __m512 bias = task.bias ? BiasAt(task.bias, n, outputs) : _mm512_setzero_ps();
  for (int64_t m = 0; m < rows.count; ++m) {
    __m512 y = _mm512_castsi512_ps(v[m]);
    if (task.bias) y = _mm512_add_ps(y, bias);
    _mm512_mask_storeu_ps(task.y + (m0 + m) * task.y_stride + n, mask, y);
  }
}

// Where one set of rows passes over long rows of weights, memory gives a tile's faster than two's.
inline int64_t GroupOutputs(const WeightView& w, int64_t sets) {
  if (w.in < kLongK) return kGroupTiles * kTileOutputs;
  return (sets == 1 ? 1 : kLongGroupTiles) * kTileOutputs;
}

// Outputs [n, n1) of one set of rows, no more than a group.
void RunGroup(const MatMulTask& task, int64_t m0, int64_t n, int64_t n1, const PackedRows& rows,
              Ahead& ahead, std::byte* edge, float* sums) {
  const int64_t tiles = (n1 - n + kTileOutputs - 1) / kTileOutputs;
  switch (tiles) {
    case 1:
      DotGroup<1>(task.w, n, rows, ahead, edge, sums);
      break;
    case 2:
      DotGroup<2>(task.w, n, rows, ahead, edge, sums);
      break;
    case 3:
      DotGroup<3>(task.w, n, rows, ahead, edge, sums);
      break;
    default:
      DotGroup<kGroupTiles>(task.w, n, rows, ahead, edge, sums);
  }
  for (int64_t t = 0; t < tiles; ++t, n += kTileOutputs) {
    StoreTile(task, m0, n, n1, rows, sums + t * kTileOutputs * rows.width());
  }
}

// Two sets of rows that are both wide.
void RunPair(const MatMulTask& task, int64_t m0, int64_t n, int64_t n1, const PackedRows* rows,
             Ahead& ahead, std::byte* edge, float* sums) {
  DotPair(task.w, n, rows, ahead, edge, sums);
  for (int64_t set = 0; set < 2; ++set) {
    for (int64_t t = 0; t < 2 && n + t * kTileOutputs < n1; ++t) {
      StoreTile(task, m0 + set * kRowsWide, n + t * kTileOutputs, n1, rows[set],
                sums + (2 * set + t) * kTileOutputs * kRowsWide);
    }
  }
}

// Outputs [n, n1), no more than a group, of all sets of a panel.
void RunSets(const MatMulTask& task, int64_t m0, int64_t n, int64_t n1, const PackedRows* rows,
             int64_t sets, std::byte* edge, float* sums) {
  int64_t pairs = 0;
  if (GroupOutputs(task.w, sets) == 2 * kTileOutputs) {
    while (2 * pairs + 1 < sets && rows[2 * pairs + 1].count > kRowsNarrow) ++pairs;
  }
  Ahead ahead(task.w, n, n1, sets - pairs);
  int64_t s = 0;
  for (; s < 2 * pairs; s += 2) {
    RunPair(task, m0 + s * kRowsWide, n, n1, rows + s, ahead, edge, sums);
  }
  for (; s < sets; ++s) RunGroup(task, m0 + s * kRowsWide, n, n1, rows[s], ahead, edge, sums);
}

}  // namespace

void MatMulAmx(const MatMulTask& task, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
               float* scratch) {
  if (!IsBF16Dot(task)) return kAvx512Ops.mat_mul(task, m0, m1, n0, n1, scratch);
  alignas(64) std::byte edge[kTileBytes];
  // A narrow tile ends in a row of full width.
  alignas(64) float sums[kGroupTiles * kTileBytes / 4 + kRowsWide];
  ConfigureTiles(kTileConfig);
  for (; m0 < m1; m0 += kAmxPanelRows) {
    const int64_t end = m1 - m0 < kAmxPanelRows ? m1 : m0 + kAmxPanelRows;
    PackedRows packed[kAmxPanelRows / kRowsWide];
    int64_t sets = 0;
    std::byte* to = reinterpret_cast<std::byte*>(scratch);
    for (int64_t m = m0; m < end; m += kRowsWide, ++sets) {
      packed[sets] = {to, end - m < kRowsWide ? end - m : kRowsWide};
      Pack(task, m, packed[sets]);
      to += (task.w.in + kTileK - 1) / kTileK * kTileBytes;
    }
    const int64_t group = GroupOutputs(task.w, sets);
    for (int64_t n = n0; n < n1; n += group) {
      const int64_t n_end = n1 - n < group ? n1 : n + group;
      RunSets(task, m0, n, n_end, packed, sets, edge, sums);
    }
  }
}

}  // namespace switchyard::kernels
SY_TARGET_END
#endif
