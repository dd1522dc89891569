// The arithmetic of one instruction set as a table of serial functions; Compute cuts the work and
// calls them from the pool. Internal to services/kernels and its tests.
#pragma once

#include <cstdint>

#include "services/base/ceil_div.h"
#include "services/kernels/blocks.h"
#include "services/kernels/kernels.h"

namespace switchyard::kernels {

// Queries that are computed together: heads [head_begin, head_end), all of one KV head, of rows
// [row_begin, row_end), all of one block table.
struct AttentionPart {
  int64_t row_begin = 0, row_end = 0;
  int head_begin = 0, head_end = 0;
};

struct Ops {
  // Rows [m0, m1) × outputs [n0, n1) of a task whose weights are not quantised. scratch:
  // MatMulScratchFloats(task), 64-byte aligned.
  void (*mat_mul)(const MatMulTask& task, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                  float* scratch);
  // `in` values of a row of x, a multiple of 32, as mat_mul_int8 wants it.
  void (*quantize)(const bf16* x, int64_t in, const QuantizedRow& out);
  // The same as mat_mul of a task that IsInt8Dot. x: row m of the task, gathered already; sixteen
  // rows from any of them on can be read.
  void (*mat_mul_int8)(const MatMulTask& task, const QuantizedRows& x, int64_t m0, int64_t m1,
                       int64_t n0, int64_t n1, float* scratch);
  // The same of a task that IsF8Dot, where the table has a way of its own; null: MatMulF8.
  void (*mat_mul_f8)(const MatMulTask& task, int64_t m0, int64_t m1, int64_t n0, int64_t n1);
  // scratch: AttentionScratchFloats(task, queries of the part), 64-byte aligned.
  void (*attention)(const AttentionTask& task, const AttentionPart& part, float* scratch);
  void (*rms_norm)(const float* x, int64_t dim, VectorView weight, float eps, void* out, DType to);
  void (*activate)(const Compute::ActivationTask& task, int64_t row);
  void (*softmax)(float* x, int64_t n);
  void (*sigmoid)(float* x, int64_t n);
  void (*rope)(float* x, int dim, bool interleaved, const float* cos, const float* sin);
  void (*add_scaled)(float* acc, const float* x, float w, int64_t n);
  // acc[i] = fma(a[i], b[i], acc[i])
  void (*add_products)(float* acc, const float* a, const float* b, int64_t n);
  void (*add)(float* acc, const float* x, int64_t n);
  void (*convert)(const float* x, int64_t n, DType to, void* out);
  void (*f8_to_bf16)(const f8e4m3* x, int64_t n, bf16* out);  // exact
  void (*convert_to_float)(const void* x, DType from, int64_t n, float* out);
  // Columns [first, first + n) of a stored row of quantised weights, rounded once where a value
  // needs more than 24 bits; first and n are whole sub-blocks (K blocks: blocks; kF8E4M3: any).
  void (*weights_to_float)(const WeightView& w, int64_t row, int64_t first, int64_t n, float* out);
  // Rough speeds, by which Compute decides how finely to cut: multiply-adds a nanosecond, in
  // general, of bf16 rows with bf16 kOutIn weights and with integers.
  double macs_per_ns, bf16_macs_per_ns, int8_macs_per_ns;
};

inline constexpr double kInlineNs = 8000;  // below it a whole call is not worth waking anyone
inline constexpr double kItemNs = 3000;    // the size of a piece that is

const Ops& OpsFor(Isa isa);
// The plain loops that define what OpsFor(isa) computes, bit for bit.
const Ops& ReferenceFor(Isa isa);

// The products that a class of bf16 may compute in its own way; all others are the fma class's.
inline bool IsBF16Dot(const MatMulTask& task) {
  return task.x.dtype == DType::kBF16 && task.w.dtype == DType::kBF16 &&
         task.w.layout == WeightLayout::kOutIn;
}

// The products with quantised weights that are computed in integers; in all others rows of such
// weights are upcast, and the fma class computes.
inline bool IsInt8Dot(const MatMulTask& task) {
  return task.x.dtype == DType::kBF16 && MeetsIntegers(task.w.dtype, task.w.layout);
}

// The products with FP8 weights that are a chain over products of bf16, kF8Columns values of k
// each.
inline bool IsF8Dot(const MatMulTask& task) {
  return task.x.dtype == DType::kBF16 && task.w.dtype == DType::kF8E4M3 &&
         task.w.layout == WeightLayout::kOutIn;
}
inline constexpr int64_t kF8Columns = 128;

// The attention that a class may compute in products of bf16; all other is the fma class's.
inline bool IsBF16Attention(const AttentionTask& task) { return task.cache_dtype == DType::kBF16; }

// Where row m lies in x.
inline int64_t RowIndex(const MatMulTask& task, int64_t m) {
  return task.gather != nullptr ? task.gather[m] : m;
}
inline const std::byte* RowAt(const MatMulTask& task, int64_t m) {
  const int64_t size = task.x.dtype == DType::kBF16 ? 2 : 4;
  return static_cast<const std::byte*>(task.x.data) + RowIndex(task, m) * task.x.stride * size;
}

// The definition of products in integers, which every class shares (reference_int8.cc).
void QuantizeReference(const bf16* x, int64_t in, const QuantizedRow& out);
void MatMulInt8Reference(const MatMulTask& task, const QuantizedRows& x, int64_t m0, int64_t m1,
                         int64_t n0, int64_t n1, float* scratch);

// Rows [m0, m1) × outputs [n0, n1) of a task with quantised weights that is neither IsInt8Dot nor
// IsF8Dot: rows of weights become float32 in scratch and ops.mat_mul computes with them. n0 and n1
// are multiples of OutputGranule(task.w) or the end.
void MatMulUpcast(const Ops& ops, const MatMulTask& task, int64_t m0, int64_t m1, int64_t n0,
                  int64_t n1, float* scratch);

// Rows [m0, m1) × outputs [n0, n1) of a task that IsF8Dot, by ops.mat_mul; n0 as above.
void MatMulF8(const Ops& ops, const MatMulTask& task, int64_t m0, int64_t m1, int64_t n0,
              int64_t n1, float* scratch);

inline float LoadOne(VectorView v, int64_t i) {
  switch (v.dtype) {
    case DType::kBF16:
      return ToFloat(reinterpret_cast<const bf16*>(v.data)[i]);
    case DType::kF16:
      return ToFloat(reinterpret_cast<const f16*>(v.data)[i]);
    default:
      return reinterpret_cast<const float*>(v.data)[i];
  }
}

inline int64_t RoundUp16(int64_t n) { return (n + 15) / 16 * 16; }

// Outputs of a tile of FP8 weights, and rows that pass over it at a time.
inline constexpr int64_t kF8Outputs = 64, kF8Rows = 128;

// Outputs that are upcast at a time: of kInOut whole blocks of each row.
inline int64_t UpcastOutputs(const WeightView& w) {
  return w.layout == WeightLayout::kInOut ? kSuperBlock : 16;
}

// Outputs of which tiles are multiples. A cache line of kAwq has 128.
inline int64_t OutputGranule(const WeightView& w) {
  if (w.packing == Packing::kAwq) return 128;
  if (w.dtype == DType::kF8E4M3 && w.layout == WeightLayout::kOutIn) return kF8Outputs;
  return w.quantised() ? UpcastOutputs(w) : 16;
}

// Products with kInOut weights go through blocks: values of k, rows, outputs.
inline constexpr int64_t kChainBlock = 64, kPackRows = 64, kPackOutputs = 64;

// Rows that the AMX target packs before it passes over the weights; 16 a tile, 1024 bytes for each
// 32 values of k.
inline constexpr int64_t kAmxPanelRows = 128;

// Of weights that are not quantised: the rows of a register tile as float32; or the three blocks;
// or the packed rows and, since a tile of few rows is loaded in full, what lies behind the last.
inline int64_t PlainScratchFloats(const MatMulTask& task) {
  const int64_t rows = 4 * RoundUp16(task.w.in);
  if (task.w.layout == WeightLayout::kInOut) {
    const int64_t blocks =
        kPackRows * kChainBlock + kChainBlock * kPackOutputs + kPackRows * kPackOutputs;
    return rows < blocks ? blocks : rows;
  }
  if (!IsBF16Dot(task)) return rows;
  const int64_t panel = task.rows < kAmxPanelRows ? task.rows : kAmxPanelRows;
  const int64_t packed = (panel + 15) / 16 * ((task.w.in + 31) / 32) * 256 + 16;
  return rows < packed ? packed : rows;
}

// Weights of MatMulUpcast as float32: some rows, or a block's columns of all.
inline int64_t UpcastFloats(const WeightView& w) { return RoundUp16(w.in) * UpcastOutputs(w); }

// Rows whose sums wait in scratch, sixteen outputs each, while a chunk of weights is taken apart; a
// multiple of those of a tile.
inline constexpr int64_t kInt8PanelRows = 256;
// Of kGptq and kAwq more outputs at once, as they share lines: those of a tile and, with so few
// rows that weights come from memory as fast as they are used, of all tiles whose lines are
// neighbours.
inline constexpr int64_t kInt8FewRows = 32, kInt8TileOutputs = 128, kInt8PanelOutputs = 512;

inline int64_t Int8ScratchFloats(const MatMulTask& task) {
  const int64_t rows = RoundUp16(task.rows);
  const int64_t panel = rows < kInt8PanelRows ? rows : kInt8PanelRows;
  if (task.w.packing == Packing::kRows) return 16 * panel;
  const int64_t few = rows < kInt8FewRows ? rows : kInt8FewRows;
  const int64_t tile = kInt8TileOutputs * panel, wide = kInt8PanelOutputs * few;
  return tile < wide ? wide : tile;
}

// A tile as bf16, its products, and what their computation takes.
inline int64_t F8ScratchFloats(const MatMulTask& task) {
  const MatMulTask tile = {.x = task.x,
                           .rows = task.rows < kF8Rows ? task.rows : kF8Rows,
                           .w = {.dtype = DType::kBF16, .in = kF8Columns}};
  return kF8Outputs * kF8Columns / 2 + kF8Rows * kF8Outputs + PlainScratchFloats(tile);
}

inline int64_t MatMulScratchFloats(const MatMulTask& task) {
  if (!task.w.quantised()) return PlainScratchFloats(task);
  if (IsInt8Dot(task)) return Int8ScratchFloats(task);
  if (IsF8Dot(task)) return F8ScratchFloats(task);
  return UpcastFloats(task.w) + PlainScratchFloats(task);
}

// Keys [first, last): of a sequence or of one block; none where first >= last.
struct KeyRange {
  int64_t first, last;
};

// Of the sequence, those that a row sees.
inline KeyRange SeenBy(const AttentionTask& task, int64_t row) {
  const int64_t end = int64_t{task.positions[row]} + 1;
  return {task.window > 0 && end > task.window ? end - task.window : 0, end};
}

// From the first that any row of a part sees to the last.
inline KeyRange SeenByAny(const AttentionTask& task, const AttentionPart& part) {
  KeyRange all = SeenBy(task, part.row_begin);
  for (int64_t row = part.row_begin + 1; row < part.row_end; ++row) {
    const KeyRange seen = SeenBy(task, row);
    all.first = seen.first < all.first ? seen.first : all.first;
    all.last = seen.last > all.last ? seen.last : all.last;
  }
  return all;
}

// Slots of a block that a row sees.
inline KeyRange VisibleIn(const AttentionTask& task, int64_t row, int64_t block) {
  const int64_t start = block * task.block_tokens;
  const KeyRange seen = SeenBy(task, row);
  return {seen.first > start ? seen.first - start : 0,
          seen.last - start < task.block_tokens ? seen.last - start : task.block_tokens};
}

// Per query a score row, a running sum of values and two scalars; the block's keys and values and
// the queries themselves as padded float32. The AMX target takes queries by sixteens, slots and
// keys by 32.
inline int64_t AttentionScratchFloats(const AttentionTask& task, int64_t queries) {
  const int64_t keys = CeilDiv(task.block_tokens, 32) * 32, key = CeilDiv(task.key_dim, 32) * 32,
                value = RoundUp16(task.value_dim);
  return RoundUp16(queries) * (2 * keys + key + value + 32) + keys * (key + value);
}

}  // namespace switchyard::kernels
