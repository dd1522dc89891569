// Attention of the class amx over a bf16 cache: reference.cc's AttendBlockAmx for sixteen queries
// at a time.
//
// A tile of keys is sixteen slots × 32 values as they lie in the cache; the queries are packed as
// the other operand, so that scores come out as slots × queries and the softmax of sixteen queries
// is one of vectors. Weights are turned over into tiles of queries × 32 slots, whose other operand
// are pairs of slots of the values, packed block by block.
#include "services/kernels/cpu/targets.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "services/base/ceil_div.h"
#include "services/kernels/cpu/target.h"
#include "services/kernels/cpu/tiles.h"
#include "services/kernels/kv_vector.h"
#include "services/kernels/scalar_math.h"

SY_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
namespace switchyard::kernels {
namespace {
// Each builds on those before it.
// clang-format off
#include "services/kernels/cpu/lanes_avx512.inc"
#include "services/kernels/cpu/partial.inc"
#include "services/kernels/cpu/exp.inc"
#include "services/kernels/cpu/amx_tiles.inc"
// clang-format on

constexpr int64_t kSet = 16;                     // queries of a tile
constexpr int64_t kTileFloats = kTileBytes / 4;  // of [16][16]

// The queries of a part in sets of sixteen, the last one filled up with queries that see nothing.
struct Sets {
  const AttentionTask& task;
  const AttentionPart& part;
  int heads;      // of a row
  int64_t count;  // rows × heads
  int64_t sets;
  int64_t key_tiles;    // of 32 values of a key
  int64_t slot_tiles;   // of 16 slots of a block
  int64_t slot_groups;  // of 32
  int64_t value_tiles;  // of 16 values
  std::byte* q;         // [sets, key_tiles] tiles of pairs × queries
  float* values;        // [sets, value_tiles] tiles of queries × values
  float* scores;        // [sets, slot_tiles] tiles of slots × queries
  std::byte* weights;   // [sets, slot_groups] tiles of queries × 32 slots
  std::byte* pairs;     // [value_tiles, slot_groups] tiles of pairs of slots × values
  float* max;           // [sets, 16]
  float* sum;           // [sets, 16]

  int64_t RowOf(int64_t i) const { return part.row_begin + i / heads; }
  int64_t IndexOf(int64_t i) const {  // into the task's q and out
    return RowOf(i) * task.heads + part.head_begin + i % heads;
  }
};

// Where the KV head's first key and value lie in a block; records are `record` apart. In values.
struct Records {
  int64_t key, value, record;
};

inline Records RecordsOf(const Sets& s) {
  const AttentionTask& task = s.task;
  const int64_t kv_head = s.part.head_begin / (task.heads / task.kv_heads);
  const int64_t key = kv_head * task.key_dim, keys = int64_t{task.kv_heads} * task.key_dim;
  if (task.values_in_key) return {key, key, keys};
  return {key, keys + kv_head * task.value_dim, keys + int64_t{task.kv_heads} * task.value_dim};
}

// Values k..k+31 of a query in bf16; zeros behind its end.
inline __m512i RoundedAt(const float* q, int64_t left) {
  const __m256i low = ToBF16Bits(LoadUpTo(q, left));
  const __m256i high = ToBF16Bits(left > 16 ? LoadUpTo(q + 16, left - 16) : Zero());
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

void PackQueries(const Sets& s) {
  std::byte* to = s.q;
  for (int64_t set = 0; set < s.sets; ++set) {
    const float* q[kSet] = {};
    for (int64_t l = 0; l < kSet && set * kSet + l < s.count; ++l) {
      q[l] = s.task.q + s.IndexOf(set * kSet + l) * s.task.key_dim;
    }
    for (int64_t k = 0; k < s.task.key_dim; k += kTileK, to += kTileBytes) {
      __m512i v[kSet];
      SY_UNROLL
      for (int l = 0; l < kSet; ++l) {
        v[l] = q[l] != nullptr ? RoundedAt(q[l] + k, s.task.key_dim - k) : _mm512_setzero_si512();
      }
      StoreTransposed(v, to);
    }
  }
}

inline Sets SetUp(const AttentionTask& task, const AttentionPart& part, float* scratch) {
  const int heads = part.head_end - part.head_begin;
  const int64_t count = (part.row_end - part.row_begin) * heads;
  Sets s = {.task = task,
            .part = part,
            .heads = heads,
            .count = count,
            .sets = CeilDiv(count, kSet),
            .key_tiles = CeilDiv(task.key_dim, kTileK),
            .slot_tiles = CeilDiv(task.block_tokens, 16),
            .slot_groups = CeilDiv(task.block_tokens, 32),
            .value_tiles = CeilDiv(task.value_dim, 16)};
  float* at = scratch;
  const auto take = [&at](int64_t floats) {
    float* here = at;
    at += floats;
    return here;
  };
  s.q = reinterpret_cast<std::byte*>(take(s.sets * s.key_tiles * kTileBytes / 4));
  s.values = take(s.sets * s.value_tiles * kTileFloats);
  s.scores = take(s.sets * s.slot_tiles * kTileFloats);
  s.weights = reinterpret_cast<std::byte*>(take(s.sets * s.slot_groups * kTileBytes / 4));
  s.pairs = reinterpret_cast<std::byte*>(take(s.value_tiles * s.slot_groups * kTileFloats));
  s.max = take(s.sets * kSet);
  s.sum = take(s.sets * kSet);
  for (int64_t i = 0; i < s.sets * s.value_tiles * kTileFloats; i += 16) {
    Store(Zero(), s.values + i);
  }
  for (int64_t i = 0; i < s.sets * kSet; i += 16) {
    Store(Broadcast(-__builtin_inff()), s.max + i);
    Store(Zero(), s.sum + i);
  }
  PackQueries(s);
  return s;
}

inline Tile KeysAt(const Sets& s, const bf16* keys, int64_t record, int64_t slot, int64_t k,
                   std::byte* copy) {
  return InPlaceOrCopied(keys + slot * record + k, record, s.task.block_tokens - slot,
                         s.task.key_dim - k, copy);
}

// Products of one or two sets of queries with the keys of one or two tiles of slots, from `tile`.
template <int kSets, int kTiles>
void DotKeys(const Sets& s, const bf16* keys, int64_t record, int64_t set, int64_t tile) {
  alignas(64) std::byte edge[kTileBytes];
  const std::byte* q0 = s.q + set * s.key_tiles * kTileBytes;
  const std::byte* q1 = q0 + s.key_tiles * kTileBytes;
  SY_TILE_ZERO(0);
  if constexpr (kTiles > 1) SY_TILE_ZERO(1);
  if constexpr (kSets > 1) SY_TILE_ZERO(2);
  if constexpr (kSets > 1 && kTiles > 1) SY_TILE_ZERO(3);
  for (int64_t t = 0; t < s.key_tiles; ++t, q0 += kTileBytes, q1 += kTileBytes) {
    Tile at = KeysAt(s, keys, record, tile * 16, t * kTileK, edge);
    SY_TILE_LOAD(6, at.data, at.stride);
    SY_TILE_LOAD(4, q0, int64_t{64});
    SY_TILE_DOT(0, 6, 4);
    if constexpr (kSets > 1) {
      SY_TILE_LOAD(5, q1, int64_t{64});
      SY_TILE_DOT(2, 6, 5);
    }
    if constexpr (kTiles > 1) {
      at = KeysAt(s, keys, record, tile * 16 + 16, t * kTileK, edge);
      SY_TILE_LOAD(7, at.data, at.stride);
      SY_TILE_DOT(1, 7, 4);
      if constexpr (kSets > 1) SY_TILE_DOT(3, 7, 5);
    }
  }
  float* out0 = s.scores + (set * s.slot_tiles + tile) * kTileFloats;
  float* out1 = out0 + s.slot_tiles * kTileFloats;
  SY_TILE_STORE(0, out0, int64_t{64});
  if constexpr (kTiles > 1) SY_TILE_STORE(1, out0 + kTileFloats, int64_t{64});
  if constexpr (kSets > 1) SY_TILE_STORE(2, out1, int64_t{64});
  if constexpr (kSets > 1 && kTiles > 1) SY_TILE_STORE(3, out1 + kTileFloats, int64_t{64});
}

void ScoreBlock(const Sets& s, const bf16* keys, int64_t record) {
  for (int64_t set = 0; set < s.sets; set += 2) {
    const bool two_sets = set + 1 < s.sets;
    for (int64_t tile = 0; tile < s.slot_tiles; tile += 2) {
      const bool two_tiles = tile + 1 < s.slot_tiles;
      if (two_sets && two_tiles) DotKeys<2, 2>(s, keys, record, set, tile);
      if (two_sets && !two_tiles) DotKeys<2, 1>(s, keys, record, set, tile);
      if (!two_sets && two_tiles) DotKeys<1, 2>(s, keys, record, set, tile);
      if (!two_sets && !two_tiles) DotKeys<1, 1>(s, keys, record, set, tile);
    }
  }
}

// Slots of a block that each query of a set sees: [first, last).
struct Seen {
  __m512i first, last;

  __mmask16 At(int64_t slot) const {
    const __m512i j = _mm512_set1_epi32(static_cast<int>(slot));
    return _mm512_cmple_epi32_mask(first, j) & _mm512_cmplt_epi32_mask(j, last);
  }
};

// `any` is widened by what the set sees.
inline Seen SeenBy(const Sets& s, int64_t set, int64_t block, int64_t* any_first,
                   int64_t* any_last) {
  alignas(64) int32_t first[kSet] = {}, last[kSet] = {};
  for (int64_t l = 0; l < kSet && set * kSet + l < s.count; ++l) {
    const KeyRange range = VisibleIn(s.task, s.RowOf(set * kSet + l), block);
    if (range.first >= range.last) continue;
    first[l] = static_cast<int32_t>(range.first);
    last[l] = static_cast<int32_t>(range.last);
    *any_first = range.first < *any_first ? range.first : *any_first;
    *any_last = range.last > *any_last ? range.last : *any_last;
  }
  return {_mm512_load_si512(first), _mm512_load_si512(last)};
}

// Raises the largest scores so far where `candidate` is larger, and shrinks what was summed.
inline void RaiseMax(const Sets& s, int64_t set, V candidate) {
  const V max = Load(s.max + set * kSet);
  const __mmask16 raised = _mm512_cmp_ps_mask(candidate.v, max.v, _CMP_GT_OQ);
  if (raised == 0) return;
  const V shrink = Exp(Sub(max, candidate));
  const V sum = Load(s.sum + set * kSet);
  Store({_mm512_mask_mul_ps(sum.v, raised, sum.v, shrink.v)}, s.sum + set * kSet);
  Store({_mm512_mask_mov_ps(max.v, raised, candidate.v)}, s.max + set * kSet);
  float by[16];
  Store(shrink, by);
  for (int64_t l = 0; l < kSet; ++l) {
    if ((raised >> l & 1) == 0) continue;
    float* values = s.values + set * s.value_tiles * kTileFloats + l * 16;
    const V factor = Broadcast(by[l]);
    for (int64_t t = 0; t < s.value_tiles; ++t, values += kTileFloats) {
      Store(Mul(Load(values), factor), values);
    }
  }
}

// What is subtracted from scores: an all -inf history must not give inf - inf.
inline V BaseOf(const Sets& s, int64_t set) {
  const __m512 max = _mm512_loadu_ps(s.max + set * kSet);
  const __mmask16 none = _mm512_cmp_ps_mask(max, _mm512_set1_ps(-__builtin_inff()), _CMP_EQ_OQ);
  return {_mm512_mask_mov_ps(max, none, _mm512_setzero_ps())};
}

// A group of 32 slots' weights, [slot][query], as bf16 [query][slot].
void StoreWeights(const V* weights, std::byte* out) {
  __m512i v[16];
  SY_UNROLL
  for (int p = 0; p < 16; ++p) {
    const __m512i even = _mm512_cvtepu16_epi32(ToBF16Bits(weights[2 * p]));
    const __m512i odd = _mm512_cvtepu16_epi32(ToBF16Bits(weights[2 * p + 1]));
    v[p] = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
  }
  StoreTransposed(v, out);
}

// Scores of a set become weights, under the largest score so far.
void WeighBlock(const Sets& s, int64_t set, const Seen& seen) {
  float* scores = s.scores + set * s.slot_tiles * kTileFloats;
  const int64_t slots = s.task.block_tokens;
  const V scale = Broadcast(s.task.scale);
  V max = Broadcast(-__builtin_inff());
  for (int64_t j = 0; j < slots; ++j) {
    const V score = Mul(scale, Load(scores + j * kSet));
    max = {_mm512_mask_max_ps(max.v, seen.At(j), score.v, max.v)};
    Store(score, scores + j * kSet);
  }
  RaiseMax(s, set, max);
  const V base = BaseOf(s, set);
  V sums[16];
  for (V& sum : sums) sum = Zero();
  for (int64_t group = 0; group < s.slot_groups; ++group) {
    V weights[32];
    for (int64_t i = 0; i < 32; ++i) {
      const int64_t j = group * 32 + i;
      weights[i] = Zero();
      if (j >= slots) continue;
      const V weight = Exp(Sub(Load(scores + j * kSet), base));
      weights[i] = {_mm512_maskz_mov_ps(seen.At(j), weight.v)};
      sums[i % 16] = Add(sums[i % 16], weights[i]);
    }
    StoreWeights(weights, s.weights + (set * s.slot_groups + group) * kTileBytes);
  }
  for (int half = 8; half >= 1; half /= 2) {
    for (int l = 0; l < half; ++l) sums[l] = Add(sums[l], sums[l + half]);
  }
  Store(Add(Load(s.sum + set * kSet), sums[0]), s.sum + set * kSet);
}

// Sixteen values each of two slots, side by side.
inline __m512i PairOf(__m256i even, __m256i odd) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(even),
                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

// Pairs of slots beside each other; zeros for slots that nobody sees, as they may hold anything.
void PackValues(const Sets& s, const bf16* values, int64_t record, int64_t first, int64_t last) {
  const int64_t tile_row = s.slot_groups * kTileBytes;  // to the next values
  for (int64_t j = 0; j < s.slot_groups * 32; j += 2) {
    const bool even = j >= first && j < last, odd = j + 1 >= first && j + 1 < last;
    const bf16* a = values + j * record;
    const bf16* b = a + record;
    std::byte* out = s.pairs + j / 32 * kTileBytes + j % 32 * 32;
    int64_t d = 0;
    for (; even && odd && d + 16 <= s.task.value_dim; d += 16, out += tile_row) {
      const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + d));
      const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + d));
      _mm512_store_si512(out, PairOf(low, high));
    }
    for (; d < s.task.value_dim; d += 16, out += tile_row) {
      const int64_t left = s.task.value_dim - d;
      const __mmask16 lanes = left >= 16 ? 0xffff : FirstLanes(left);
      const __m256i low = _mm256_maskz_loadu_epi16(even ? lanes : 0, a + d);
      const __m256i high = _mm256_maskz_loadu_epi16(odd ? lanes : 0, b + d);
      _mm512_store_si512(out, PairOf(low, high));
    }
  }
}

// values += weights · values of the block, for kSets sets from `set` on.
template <int kSets>
void AddValues(const Sets& s, int64_t set) {
  const std::byte* weights0 = s.weights + set * s.slot_groups * kTileBytes;
  const std::byte* weights1 = weights0 + s.slot_groups * kTileBytes;
  float* to0 = s.values + set * s.value_tiles * kTileFloats;
  float* to1 = to0 + s.value_tiles * kTileFloats;
  const std::byte* pairs = s.pairs;
  for (int64_t t = 0; t < s.value_tiles; ++t, to0 += kTileFloats, to1 += kTileFloats) {
    SY_TILE_LOAD(0, to0, int64_t{64});
    if constexpr (kSets > 1) SY_TILE_LOAD(1, to1, int64_t{64});
    for (int64_t group = 0; group < s.slot_groups; ++group, pairs += kTileBytes) {
      SY_TILE_LOAD(4, pairs, int64_t{64});
      SY_TILE_LOAD(6, weights0 + group * kTileBytes, int64_t{64});
      SY_TILE_DOT(0, 6, 4);
      if constexpr (kSets > 1) {
        SY_TILE_LOAD(7, weights1 + group * kTileBytes, int64_t{64});
        SY_TILE_DOT(1, 7, 4);
      }
    }
    SY_TILE_STORE(0, to0, int64_t{64});
    if constexpr (kSets > 1) SY_TILE_STORE(1, to1, int64_t{64});
  }
}

void AttendBlock(const Sets& s, const bf16* data, int64_t block) {
  const Records at = RecordsOf(s);
  ScoreBlock(s, data + at.key, at.record);
  int64_t first = s.task.block_tokens, last = 0;
  for (int64_t set = 0; set < s.sets; ++set) {
    const Seen seen = SeenBy(s, set, block, &first, &last);
    WeighBlock(s, set, seen);
  }
  PackValues(s, data + at.value, at.record, first, last);
  for (int64_t set = 0; set < s.sets; set += 2) {
    if (set + 1 < s.sets) {
      AddValues<2>(s, set);
    } else {
      AddValues<1>(s, set);
    }
  }
}

void Finish(const Sets& s) {
  for (int64_t set = 0; set < s.sets && s.task.sinks; ++set) {
    float sinks[kSet];
    for (int64_t l = 0; l < kSet; ++l) {
      const int64_t i = set * kSet + l;
      sinks[l] = LoadOne(s.task.sinks, s.part.head_begin + i % s.heads);
    }
    RaiseMax(s, set, Load(sinks));
    const V more = Exp(Sub(Load(sinks), BaseOf(s, set)));
    Store(Add(Load(s.sum + set * kSet), more), s.sum + set * kSet);
  }
  for (int64_t i = 0; i < s.count; ++i) {
    const V sum = Broadcast(s.sum[i]);
    const float* values = s.values + i / kSet * s.value_tiles * kTileFloats + i % kSet * 16;
    float* out = s.task.out + s.IndexOf(i) * s.task.value_dim;
    for (int64_t d = 0; d < s.task.value_dim; d += 16, values += kTileFloats) {
      StoreUpTo(Div(Load(values), sum), out + d, s.task.value_dim - d);
    }
  }
}

}  // namespace

void AttentionAmx(const AttentionTask& task, const AttentionPart& part, float* scratch) {
  if (!IsBF16Attention(task)) return kAvx512Ops.attention(task, part, scratch);
  ConfigureTiles(kTileConfig);
  const Sets s = SetUp(task, part, scratch);
  const KeyRange seen = SeenByAny(task, part);
  const int32_t* table = task.block_tables[part.row_begin];
  const auto at = [&](int64_t block) {
    return reinterpret_cast<const bf16*>(task.cache + table[block] * task.block_stride_bytes);
  };
  for (int64_t block = seen.first / task.block_tokens; block * task.block_tokens < seen.last;
       ++block) {
    AttendBlock(s, at(block), block);
  }
  Finish(s);
}

}  // namespace switchyard::kernels
SY_TARGET_END
#endif
