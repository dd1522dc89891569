// What the kernels compute, as plain loops: the portable target, and the truth of the others.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "services/kernels/kv_vector.h"
#include "services/kernels/ops.h"
#include "services/kernels/scalar_math.h"

namespace switchyard::kernels {
namespace {

constexpr int kLanes = 16;
using Lanes = std::array<float, kLanes>;

float Load(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kBF16:
      return ToFloat(static_cast<const bf16*>(data)[i]);
    case DType::kF16:
      return ToFloat(static_cast<const f16*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

void Store(float x, DType dtype, void* out, int64_t i) {
  switch (dtype) {
    case DType::kBF16:
      static_cast<bf16*>(out)[i] = ToBF16(x);
      break;
    case DType::kF16:
      static_cast<f16*>(out)[i] = ToF16(x);
      break;
    default:
      static_cast<float*>(out)[i] = x;
  }
}

float Fold(Lanes& lanes) {
  for (int half = kLanes / 2; half >= 1; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

// Σ a(k)·b(k) over k in [0, n), padded with zeros to a multiple of 16.
template <typename A, typename B>
float Dot(int64_t n, A a, B b) {
  Lanes lanes{};
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] = std::fma(a(k + l), b(k + l), lanes[l]);
  }
  if (k < n) {
    for (int l = 0; l < kLanes; ++l) {
      const bool inside = k + l < n;
      lanes[l] = std::fma(inside ? a(k + l) : 0.0f, inside ? b(k + l) : 0.0f, lanes[l]);
    }
  }
  return Fold(lanes);
}

float FlushSubnormal(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

// One step of vdpbf16ps on one lane: subnormal operands and results are zero, rounding is to
// nearest even.
float BF16Fma(float a, float b, float acc) {
  return FlushSubnormal(std::fma(FlushSubnormal(a), FlushSubnormal(b), FlushSubnormal(acc)));
}

float DotBF16(int64_t n, const bf16* a, const bf16* b) {
  Lanes lanes{};
  auto at = [n](const bf16* x, int64_t k) { return k < n ? ToFloat(x[k]) : 0.0f; };
  for (int64_t k = 0; k < n; k += 2 * kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const int64_t even = k + 2 * l, odd = even + 1;
      lanes[l] = BF16Fma(at(a, odd), at(b, odd), lanes[l]);
      lanes[l] = BF16Fma(at(a, even), at(b, even), lanes[l]);
    }
  }
  return Fold(lanes);
}

// As tdpbf16ps adds: 32 values of k in two chains, then their sum to the output.
float DotAmx(int64_t n, const bf16* a, const bf16* b, float sum) {
  auto at = [n](const bf16* x, int64_t k) { return k < n ? ToFloat(x[k]) : 0.0f; };
  for (int64_t k0 = 0; k0 < n; k0 += 2 * kLanes) {
    float even = 0, odd = 0;
    for (int64_t k = k0; k < k0 + 2 * kLanes; k += 2) {
      even = BF16Fma(at(a, k), at(b, k), even);
      odd = BF16Fma(at(a, k + 1), at(b, k + 1), odd);
    }
    sum = FlushSubnormal(FlushSubnormal(sum) + FlushSubnormal(even + odd));
  }
  return sum;
}

float DotAmx(int64_t n, const bf16* a, const bf16* b) { return DotAmx(n, a, b, 0); }

template <typename X, typename W>
float Product(const MatMulTask& task, const X* x, int64_t n) {
  const W* w = reinterpret_cast<const W*>(task.w.data);
  auto get = [](auto v) {
    if constexpr (std::is_same_v<decltype(v), float>) {
      return v;
    } else {
      return ToFloat(v);
    }
  };
  const int64_t stride = task.w.stride;
  if (task.w.layout == WeightLayout::kOutIn) {
    const W* row = w + n * stride;
    return Dot(
        task.w.in, [=](int64_t k) { return get(x[k]); }, [=](int64_t k) { return get(row[k]); });
  }
  float chain = 0;
  for (int64_t k = 0; k < task.w.in; ++k)
    chain = std::fma(get(x[k]), get(w[k * stride + n]), chain);
  return chain;
}

template <typename X>
float ProductOf(const MatMulTask& task, const void* x, int64_t n) {
  const X* row = static_cast<const X*>(x);
  switch (task.w.dtype) {
    case DType::kBF16:
      return Product<X, bf16>(task, row, n);
    case DType::kF16:
      return Product<X, f16>(task, row, n);
    default:
      return Product<X, float>(task, row, n);
  }
}

// The product of a bf16 row with a bf16 kOutIn row of weights; null: as any other.
using BF16Dot = float (*)(int64_t, const bf16*, const bf16*);

template <BF16Dot kBF16Dot>
void MatMul(const MatMulTask& task, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float*) {
  const bool x_bf16 = task.x.dtype == DType::kBF16;
  const bool bf16_dot = kBF16Dot != nullptr && IsBF16Dot(task);
  for (int64_t m = m0; m < m1; ++m) {
    const void* x = RowAt(task, m);
    for (int64_t n = n0; n < n1; ++n) {
      float y;
      if (bf16_dot) {
        y = kBF16Dot(task.w.in, static_cast<const bf16*>(x),
                     reinterpret_cast<const bf16*>(task.w.data) + n * task.w.stride);
      } else {
        y = x_bf16 ? ProductOf<bf16>(task, x, n) : ProductOf<float>(task, x, n);
      }
      if (task.bias) y += Load(task.bias.data, task.bias.dtype, n);
      task.y[m * task.y_stride + n] = y;
    }
  }
}

// FP8 weights with scales beside them: a chain over products of bf16.
template <BF16Dot kBF16Dot>
float ProductF8(const MatMulTask& task, const bf16* x, int64_t n) {
  const auto* w = reinterpret_cast<const f8e4m3*>(task.w.data) + n * task.w.stride;
  float y = 0;
  for (int64_t k0 = 0; k0 < task.w.in; k0 += kF8Columns) {
    const int64_t columns = std::min(task.w.in - k0, kF8Columns);
    bf16 exact[kF8Columns];
    for (int64_t k = 0; k < columns; ++k) exact[k] = ToBF16(ToFloat(w[k0 + k]));
    float sum;
    if constexpr (kBF16Dot != nullptr) {
      sum = kBF16Dot(columns, x + k0, exact);
    } else {
      sum = Dot(
          columns, [&](int64_t k) { return ToFloat(x[k0 + k]); },
          [&](int64_t k) { return ToFloat(exact[k]); });
    }
    y = std::fma(sum, ScaleAt(task.w, n, k0 / task.w.scales.group_columns), y);
  }
  return y;
}

template <BF16Dot kBF16Dot>
void MatMulF8Reference(const MatMulTask& task, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
  for (int64_t m = m0; m < m1; ++m) {
    const bf16* x = reinterpret_cast<const bf16*>(RowAt(task, m));
    for (int64_t n = n0; n < n1; ++n) {
      const float y = ProductF8<kBF16Dot>(task, x, n);
      task.y[m * task.y_stride + n] = task.bias ? y + LoadOne(task.bias, n) : y;
    }
  }
}

// The running state of one (row, head): softmax is made anew with the largest score so far.
struct Online {
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0;
  float* values;  // [value_dim]
  int64_t dim;

  // What is subtracted from scores: an all -inf history must not give inf - inf.
  float Base() const { return max == -std::numeric_limits<float>::infinity() ? 0.0f : max; }

  void RaiseMax(float candidate) {
    if (!(candidate > max)) return;
    const float shrink = ExpScalar(max - candidate);
    max = candidate;
    sum *= shrink;
    for (int64_t d = 0; d < dim; ++d) values[d] *= shrink;
  }
};

struct Visible {
  int64_t begin, end;  // keys
};

Visible VisibleKeys(const AttentionTask& task, int64_t row) {
  const int64_t end = int64_t{task.positions[row]} + 1;
  return {task.window > 0 ? std::max<int64_t>(0, end - task.window) : 0, end};
}

void AttendBlock(const AttentionTask& task, const float* q, const std::byte* block, int kv_head,
                 int first, int last, float* scores, Online& state) {
  const int64_t key_bytes = KvVectorBytes(task.cache_dtype, task.key_dim);
  const int64_t value_bytes = KvVectorBytes(task.cache_dtype, task.value_dim);
  const int64_t values_at = task.kv_heads * key_bytes;
  const int64_t record = values_at + (task.values_in_key ? 0 : task.kv_heads * value_bytes);
  float max = -std::numeric_limits<float>::infinity();
  for (int j = first; j < last; ++j) {
    const std::byte* key = block + j * record + kv_head * key_bytes;
    scores[j - first] =
        task.scale * Dot(
                         task.key_dim, [&](int64_t k) { return q[k]; },
                         [&](int64_t k) { return LoadKv(key, task.cache_dtype, task.key_dim, k); });
    max = Max(scores[j - first], max);
  }
  state.RaiseMax(max);
  const float base = state.Base();
  Lanes sums{};
  for (int j = first; j < last; ++j) {
    const float p = ExpScalar(scores[j - first] - base);
    const std::byte* value =
        block + j * record +
        (task.values_in_key ? kv_head * key_bytes : values_at + kv_head * value_bytes);
    const int64_t vector_dim = task.values_in_key ? task.key_dim : task.value_dim;
    sums[(j - first) % kLanes] += p;
    for (int64_t d = 0; d < task.value_dim; ++d) {
      state.values[d] =
          std::fma(p, LoadKv(value, task.cache_dtype, vector_dim, d), state.values[d]);
    }
  }
  state.sum += Fold(sums);
}

// Where a record's values of the KV head begin in a block of bf16, and what it has.
struct BF16Block {
  const bf16* key;
  const bf16* value;
  int64_t record;
};
BF16Block BF16BlockOf(const AttentionTask& task, const std::byte* block, int kv_head) {
  const bf16* data = reinterpret_cast<const bf16*>(block);
  const int64_t keys = int64_t{task.kv_heads} * task.key_dim;
  const bf16* key = data + int64_t{kv_head} * task.key_dim;
  if (task.values_in_key) return {key, key, keys};
  return {key, data + keys + int64_t{kv_head} * task.value_dim,
          keys + int64_t{task.kv_heads} * task.value_dim};
}

// As AttendBlock in products of bf16 by tdpbf16ps: queries and weights are rounded to bf16 (not the
// weights' sum), and the block's slots are the k of the values' products, with weight 0 where they
// are not seen.
void AttendBlockAmx(const AttentionTask& task, const float* q, const std::byte* block, int kv_head,
                    int first, int last, float* scores, Online& state) {
  const BF16Block at = BF16BlockOf(task, block, kv_head);
  std::vector<bf16> query(static_cast<size_t>(task.key_dim));
  for (int64_t k = 0; k < task.key_dim; ++k) query[static_cast<size_t>(k)] = ToBF16(q[k]);
  float max = -std::numeric_limits<float>::infinity();
  for (int j = first; j < last; ++j) {
    scores[j] = task.scale * DotAmx(task.key_dim, at.key + j * at.record, query.data());
    max = Max(scores[j], max);
  }
  state.RaiseMax(max);
  Lanes sums{};
  std::vector<bf16> weights(static_cast<size_t>(task.block_tokens)), values(weights);
  for (int j = first; j < last; ++j) {
    const float p = ExpScalar(scores[j] - state.Base());
    sums[j % kLanes] += p;
    weights[static_cast<size_t>(j)] = ToBF16(p);
  }
  for (int64_t d = 0; d < task.value_dim; ++d) {
    for (int j = first; j < last; ++j) values[static_cast<size_t>(j)] = at.value[j * at.record + d];
    state.values[d] = DotAmx(task.block_tokens, weights.data(), values.data(), state.values[d]);
  }
  state.sum += Fold(sums);
}

using AttendBlockFn = decltype(AttendBlock);

template <AttendBlockFn* kAttendBF16>
void AttendOne(const AttentionTask& task, int64_t row, int head, float* scores) {
  AttendBlockFn* attend = IsBF16Attention(task) ? kAttendBF16 : AttendBlock;
  const int64_t index = row * task.heads + head;
  Online state{.values = task.out + index * task.value_dim, .dim = task.value_dim};
  std::fill_n(state.values, task.value_dim, 0.0f);
  const int kv_head = head / (task.heads / task.kv_heads);
  const Visible keys = VisibleKeys(task, row);
  const int64_t size = task.block_tokens;
  for (int64_t b = keys.begin / size; b * size < keys.end; ++b) {
    const int first = static_cast<int>(std::max<int64_t>(keys.begin - b * size, 0));
    const int last = static_cast<int>(std::min<int64_t>(keys.end - b * size, size));
    attend(task, task.q + index * task.key_dim,
           task.cache + int64_t{task.block_tables[row][b]} * task.block_stride_bytes, kv_head,
           first, last, scores, state);
  }
  if (task.sinks) {
    const float sink = Load(task.sinks.data, task.sinks.dtype, head);
    state.RaiseMax(sink);
    state.sum += ExpScalar(sink - state.Base());
  }
  for (int64_t d = 0; d < task.value_dim; ++d) state.values[d] /= state.sum;
}

template <AttendBlockFn* kAttendBF16>
void Attention(const AttentionTask& task, const AttentionPart& part, float* scratch) {
  for (int64_t row = part.row_begin; row < part.row_end; ++row) {
    for (int head = part.head_begin; head < part.head_end; ++head) {
      AttendOne<kAttendBF16>(task, row, head, scratch);
    }
  }
}

void RmsNorm(const float* x, int64_t dim, VectorView weight, float eps, void* out, DType to) {
  auto at = [x](int64_t i) { return x[i]; };
  const float mean = Dot(dim, at, at) / static_cast<float>(dim);
  const float scale = 1.0f / std::sqrt(mean + eps);
  for (int64_t i = 0; i < dim; ++i) {
    const float y = x[i] * scale;
    Store(weight ? y * Load(weight.data, weight.dtype, i) : y, to, out, i);
  }
}

void Activate(const Compute::ActivationTask& task, int64_t row) {
  const float* in = task.gate_up + row * task.stride;
  std::byte* out = static_cast<std::byte*>(task.out.data) +
                   row * task.out.stride * static_cast<int64_t>(SizeOf(task.out.dtype));
  for (int64_t i = 0; i < task.width; ++i) {
    float gate = task.interleaved ? in[2 * i] : in[i];
    float up = task.interleaved ? in[2 * i + 1] : in[task.width + i];
    float alpha = 1.0f;
    if (task.clamped) {
      gate = Min(task.limit, gate);
      up = Min(task.limit, Max(-task.limit, up)) + 1.0f;
      alpha = task.alpha;
    }
    Store(SiluScalar(gate, alpha) * up, task.out.dtype, out, i);
  }
}

void Softmax(float* x, int64_t n) {
  float max = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) max = Max(x[i], max);
  Lanes sums{};
  for (int64_t i = 0; i < n; ++i) {
    x[i] = ExpScalar(x[i] - max);
    sums[i % kLanes] += x[i];
  }
  const float sum = Fold(sums);
  for (int64_t i = 0; i < n; ++i) x[i] /= sum;
}

void Sigmoid(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = 1.0f / (1.0f + ExpScalar(-x[i]));
}

void Rope(float* x, int dim, bool interleaved, const float* cos, const float* sin) {
  const int half = dim / 2;
  for (int i = 0; i < half; ++i) {
    float& a = interleaved ? x[2 * i] : x[i];
    float& b = interleaved ? x[2 * i + 1] : x[i + half];
    const float rotated = std::fma(a, cos[i], -(b * sin[i]));
    b = std::fma(b, cos[i], a * sin[i]);
    a = rotated;
  }
}

void AddScaled(float* acc, const float* x, float w, int64_t n) {
  for (int64_t i = 0; i < n; ++i) acc[i] = std::fma(w, x[i], acc[i]);
}

void Add(float* acc, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) acc[i] += x[i];
}

void Convert(const float* x, int64_t n, DType to, void* out) {
  for (int64_t i = 0; i < n; ++i) Store(x[i], to, out, i);
}

void ConvertToFloat(const void* x, DType from, int64_t n, float* out) {
  if (IsBlocked(from)) {
    for (int64_t b = 0; b < n / kSubBlock; ++b) {
      SubBlock block;
      ReadSubBlock(from, static_cast<const std::byte*>(x), b, &block);
      SubBlockToFloat(block, out + b * kSubBlock);
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) out[i] = Load(x, from, i);
}

void WeightsToFloat(const WeightView& w, int64_t row, int64_t first, int64_t n, float* out) {
  if (w.dtype == DType::kF8E4M3) {
    const auto* x = reinterpret_cast<const f8e4m3*>(w.data) + row * w.stride;
    for (int64_t k = first; k < first + n; ++k) {
      out[k - first] = ToFloat(x[k]) * ScaleAt(w, row, k / w.scales.group_columns);
    }
    return;
  }
  for (int64_t b = 0; b < n / kSubBlock; ++b) {
    SubBlock block;
    ReadSubBlock(w, row, first / kSubBlock + b, &block);
    SubBlockToFloat(block, out + b * kSubBlock);
  }
}

void AddProducts(float* acc, const float* a, const float* b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) acc[i] = std::fma(a[i], b[i], acc[i]);
}

void F8ToBF16(const f8e4m3* x, int64_t n, bf16* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = ToBF16(ToFloat(x[i]));
}

template <BF16Dot kBF16Dot, AttendBlockFn* kAttendBF16 = AttendBlock>
constexpr Ops MakeOps() {
  return {.mat_mul = MatMul<kBF16Dot>,
          .quantize = QuantizeReference,
          .mat_mul_int8 = MatMulInt8Reference,
          .mat_mul_f8 = MatMulF8Reference<kBF16Dot>,
          .attention = Attention<kAttendBF16>,
          .rms_norm = RmsNorm,
          .activate = Activate,
          .softmax = Softmax,
          .sigmoid = Sigmoid,
          .rope = Rope,
          .add_scaled = AddScaled,
          .add_products = AddProducts,
          .add = Add,
          .convert = Convert,
          .f8_to_bf16 = F8ToBF16,
          .convert_to_float = ConvertToFloat,
          .weights_to_float = WeightsToFloat,
          .macs_per_ns = 0.3,
          .bf16_macs_per_ns = 0.3,
          .int8_macs_per_ns = 0.5};
}

constexpr Ops kReference = MakeOps<nullptr>();
constexpr Ops kReferenceBF16 = MakeOps<DotBF16>();
constexpr Ops kReferenceAmx = MakeOps<DotAmx, AttendBlockAmx>();

}  // namespace

const Ops& ReferenceFor(Isa isa) {
  switch (isa) {
    case Isa::kAvx512Bf16:
      return kReferenceBF16;
    case Isa::kAmx:
      return kReferenceAmx;
    default:
      return kReference;
  }
}

}  // namespace switchyard::kernels
