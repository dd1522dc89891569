// Cuts the work of a call into items of a few microseconds and runs them on the pool. The cut never
// changes a result: every output element is computed whole, inside one item.
#include <algorithm>
#include <functional>

#include "absl/container/inlined_vector.h"
#include "services/base/ceil_div.h"
#include "services/base/check.h"
#include "services/kernels/kernels.h"
#include "services/kernels/ops.h"
#include "services/kernels/quantize_inputs.h"
#include "services/kernels/scalar_math.h"
#include "services/tensor/buffer.h"

namespace switchyard::kernels {
namespace {

constexpr double kWeightBytesPerNs = 15;  // one thread streaming weights
constexpr int64_t kTileRows = 128;

// How one MatMulTask is cut: n_tiles × m_tiles items.
struct Cut {
  int64_t tile_n = 0, tile_m = 0, tiles_n = 0;
  int64_t first_item = 0;
};

double MatMulNs(const MatMulTask& task, const Ops& ops) {
  const double macs = static_cast<double>(task.rows * task.w.out * task.w.in);
  const double speed = IsBF16Dot(task)   ? ops.bf16_macs_per_ns
                       : IsF8Dot(task)   ? ops.bf16_macs_per_ns / 2
                       : IsInt8Dot(task) ? ops.int8_macs_per_ns
                                         : ops.macs_per_ns;
  return std::max(macs / speed, static_cast<double>(task.w.bytes()) / kWeightBytesPerNs);
}

// About `pieces` items.
Cut CutTask(const MatMulTask& task, int64_t pieces) {
  Cut cut;
  const int64_t granule = OutputGranule(task.w), tiles_n_max = CeilDiv(task.w.out, granule);
  cut.tile_n = CeilDiv(tiles_n_max, std::min(pieces, tiles_n_max)) * granule;
  cut.tiles_n = CeilDiv(task.w.out, cut.tile_n);
  // Rows are cut only where the outputs alone give too few items.
  const int64_t tiles_m =
      std::clamp<int64_t>(CeilDiv(pieces, cut.tiles_n), 1, CeilDiv(task.rows, kTileRows));
  cut.tile_m = CeilDiv(task.rows, tiles_m);
  return cut;
}

float* Scratch(int64_t floats) {
  thread_local AlignedBuffer buffer;
  buffer.Reserve(static_cast<size_t>(floats) * sizeof(float));
  return buffer.as<float>();
}

void CheckTask(const MatMulTask& task) {
  SY_DCHECK(task.x.dtype == DType::kF32 || task.x.dtype == DType::kBF16);
  SY_DCHECK(task.w.dtype == DType::kF32 || task.w.dtype == DType::kBF16 ||
            task.w.dtype == DType::kF16 || task.w.quantised());
  SY_DCHECK(task.w.columns() % BlockOf(task.w.dtype).elements == 0);
  SY_DCHECK(!task.bias || task.bias.size >= task.w.out);
  (void)task;
}

struct Tile {
  int64_t m0, m1, n0, n1;
};

void RunTile(const Ops& ops, const MatMulTask& task, const QuantizedRows* x, const Tile& t) {
  float* scratch = Scratch(MatMulScratchFloats(task));
  if (x != nullptr) {
    ops.mat_mul_int8(task, *x, t.m0, t.m1, t.n0, t.n1, scratch);
  } else if (IsF8Dot(task) && ops.mat_mul_f8 != nullptr) {
    ops.mat_mul_f8(task, t.m0, t.m1, t.n0, t.n1);
  } else if (IsF8Dot(task)) {
    MatMulF8(ops, task, t.m0, t.m1, t.n0, t.n1, scratch);
  } else if (task.w.quantised()) {
    MatMulUpcast(ops, task, t.m0, t.m1, t.n0, t.n1, scratch);
  } else {
    ops.mat_mul(task, t.m0, t.m1, t.n0, t.n1, scratch);
  }
}

constexpr int64_t kPartQueries = 64;

using AttentionParts = absl::InlinedVector<AttentionPart, 64>;

// Rows of one block table beside each other share each block's keys; so do the heads of a KV head.
AttentionParts CutAttention(const AttentionTask& task, int64_t parts_wanted) {
  AttentionParts parts;
  const int group = task.heads / task.kv_heads;
  for (int64_t row = 0; row < task.rows;) {
    const int64_t rows_max = std::max<int64_t>(1, kPartQueries / group);
    int64_t end = row + 1;
    while (end < task.rows && end - row < rows_max &&
           task.block_tables[end] == task.block_tables[row]) {
      ++end;
    }
    const int64_t rows_left = CeilDiv(task.rows, end - row);
    int heads = static_cast<int>(std::min<int64_t>(group, kPartQueries));
    while (heads > 4 && rows_left * task.kv_heads * CeilDiv(group, heads) < parts_wanted) {
      heads = static_cast<int>(CeilDiv(heads, 2));
    }
    for (int first = 0; first < task.heads; first += group) {
      for (int head = first; head < first + group; head += heads) {
        parts.push_back({row, end, head, std::min(head + heads, first + group)});
      }
    }
    row = end;
  }
  return parts;
}

int64_t KeysOf(const AttentionTask& task, int64_t row) {
  const KeyRange seen = SeenBy(task, row);
  return seen.last - seen.first;
}

// The longest first: what is begun last must not be what takes longest.
void SortByLength(const AttentionTask& task, AttentionParts& parts) {
  const auto work = [&](const AttentionPart& part) {
    return KeysOf(task, part.row_end - 1) * (part.row_end - part.row_begin) *
           (part.head_end - part.head_begin);
  };
  std::ranges::stable_sort(parts, std::greater<>(), work);
}

double AttentionNs(const AttentionTask& task, const Ops& ops) {
  double keys = 0;
  for (int64_t row = 0; row < task.rows; ++row) keys += static_cast<double>(KeysOf(task, row));
  return keys * task.heads * (task.key_dim + task.value_dim) / ops.macs_per_ns;
}

// The serial functions use the widest table of this CPU: their bits are the same on every one.
const Ops& Widest() {
  static const Ops& ops = OpsFor(SupportedIsas().back());
  return ops;
}

}  // namespace

Compute::Compute(Isa isa, ThreadPool& pool) : isa_(isa), pool_(pool) {
  SY_CHECK(std::ranges::count(SupportedIsas(), isa) == 1);
}

void Compute::MatMul(std::span<const MatMulTask> tasks) const {
  const Ops& ops = OpsFor(isa_);
  double total_ns = 0;
  for (const MatMulTask& task : tasks) {
    CheckTask(task);
    total_ns += MatMulNs(task, ops);
  }
  const bool serial = total_ns < kInlineNs || pool_.threads() == 1;
  absl::InlinedVector<Cut, 256> cuts;  // gate and up of every expert, of most models
  int64_t items = 0;
  for (const MatMulTask& task : tasks) {
    Cut cut;
    if (task.rows > 0 && task.w.out > 0) {
      const double pieces = serial ? 1 : MatMulNs(task, ops) / kItemNs;
      cut = CutTask(task, std::max<int64_t>(1, static_cast<int64_t>(pieces)));
    }
    cut.first_item = items;
    items += cut.tiles_n == 0 ? 0 : cut.tiles_n * CeilDiv(task.rows, cut.tile_m);
    cuts.push_back(cut);
  }
  const int64_t grain =
      serial ? items
             : std::max<int64_t>(
                   1, static_cast<int64_t>(kItemNs * static_cast<double>(items) / total_ns));
  const QuantizedInputs quantized(tasks, ops, pool_);
  pool_.ParallelFor(items, grain, [&](int64_t begin, int64_t end) {
    auto cut = std::ranges::upper_bound(cuts, begin, {}, &Cut::first_item) - 1;
    for (int64_t item = begin; item < end;) {
      while (cut + 1 != cuts.end() && (cut + 1)->first_item <= item) ++cut;
      const size_t t = static_cast<size_t>(cut - cuts.begin());
      const MatMulTask& task = tasks[t];
      const int64_t tile = (item - cut->first_item) % cut->tiles_n;
      const int64_t m0 = (item - cut->first_item) / cut->tiles_n * cut->tile_m;
      // Neighbours with the same rows go together: what is done once for the rows is done once.
      const int64_t tiles = std::min(cut->tiles_n - tile, end - item);
      RunTile(ops, task, IsInt8Dot(task) ? &quantized.of(t) : nullptr,
              {m0, std::min(m0 + cut->tile_m, task.rows), tile * cut->tile_n,
               std::min((tile + tiles) * cut->tile_n, task.w.out)});
      item += tiles;
    }
  });
}

void Compute::Attention(const AttentionTask& task) const {
  if (task.rows == 0) return;
  SY_CHECK(task.kv_heads > 0 && task.heads % task.kv_heads == 0 && task.block_tokens > 0);
  const Ops& ops = OpsFor(isa_);
  const double total_ns = AttentionNs(task, ops);
  const bool serial = total_ns < kInlineNs || pool_.threads() == 1;
  AttentionParts parts = CutAttention(task, serial ? 1 : 4 * int64_t{pool_.threads()});
  if (!serial) SortByLength(task, parts);
  const int64_t count = static_cast<int64_t>(parts.size());
  const int64_t grain =
      serial ? count
             : std::max<int64_t>(
                   1, static_cast<int64_t>(kItemNs * static_cast<double>(count) / total_ns));
  pool_.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const AttentionPart& part = parts[static_cast<size_t>(i)];
      const int64_t queries = (part.row_end - part.row_begin) * (part.head_end - part.head_begin);
      ops.attention(task, part, Scratch(AttentionScratchFloats(task, queries)));
    }
  });
}

void Compute::RmsNorm(const float* x, int64_t x_stride, int64_t rows, int64_t dim,
                      VectorView weight, float eps, MutableRows out) const {
  const Ops& ops = OpsFor(isa_);
  const double row_ns = 4.0 * static_cast<double>(dim) / ops.macs_per_ns;
  const int64_t out_bytes = out.stride * static_cast<int64_t>(SizeOf(out.dtype));
  pool_.ParallelFor(rows, 1 + static_cast<int64_t>(kInlineNs / row_ns),
                    [&](int64_t begin, int64_t end) {
                      for (int64_t r = begin; r < end; ++r) {
                        ops.rms_norm(x + r * x_stride, dim, weight, eps,
                                     static_cast<std::byte*>(out.data) + r * out_bytes, out.dtype);
                      }
                    });
}

void Compute::Activate(std::span<const ActivationTask> tasks) const {
  const Ops& ops = OpsFor(isa_);
  absl::InlinedVector<int64_t, 64> first_row;
  int64_t rows = 0;
  double total_ns = 0;
  for (const ActivationTask& task : tasks) {
    first_row.push_back(rows);
    rows += task.rows;
    total_ns += 16.0 * static_cast<double>(task.rows * task.width) / ops.macs_per_ns;
  }
  if (rows == 0) return;
  const double row_ns = std::max(total_ns / static_cast<double>(rows), 1.0);
  pool_.ParallelFor(
      rows, 1 + static_cast<int64_t>(kInlineNs / row_ns), [&](int64_t begin, int64_t end) {
        size_t t =
            static_cast<size_t>(std::ranges::upper_bound(first_row, begin) - first_row.begin() - 1);
        for (int64_t row = begin; row < end; ++row) {
          while (row - first_row[t] >= tasks[t].rows) ++t;
          ops.activate(tasks[t], row - first_row[t]);
        }
      });
}

void ApplyRope(float* x, int64_t heads, int64_t head_stride, int dim, bool interleaved,
               const float* cos, const float* sin) {
  const Ops& ops = Widest();
  for (int64_t h = 0; h < heads; ++h) ops.rope(x + h * head_stride, dim, interleaved, cos, sin);
}

float Exp(float x) { return ExpScalar(x); }
float Sigmoid(float x) { return 1.0f / (1.0f + ExpScalar(-x)); }
void Sigmoid(float* x, int64_t n) { Widest().sigmoid(x, n); }
void Softmax(float* x, int64_t n) { Widest().softmax(x, n); }
void AddScaled(float* acc, const float* x, float w, int64_t n) {
  Widest().add_scaled(acc, x, w, n);
}
void Add(float* acc, const float* x, int64_t n) { Widest().add(acc, x, n); }
void Convert(const float* x, int64_t n, DType to, void* out) { Widest().convert(x, n, to, out); }
void ConvertToFloat(const void* x, DType from, int64_t n, float* out) {
  Widest().convert_to_float(x, from, n, out);
}
void RowToFloat(const WeightView& w, int64_t row, float* out) {
  if (w.quantised()) return Widest().weights_to_float(w, row, 0, w.columns(), out);
  Widest().convert_to_float(w.data + row * BytesOf(w.dtype, w.stride), w.dtype, w.columns(), out);
}

}  // namespace switchyard::kernels
