// The only header of the kernels that rooms see: the arithmetic of a forward pass on a CPU.
//
// Everything here obeys one rule: an output element is a function of its operands and of the
// arithmetic class alone, never of the number of rows in the call, the number of threads, the tile
// or the instruction set inside a class. Three classes exist:
//
//   fma         portable, AVX2, AVX-512, NEON: a dot product over K runs in 16 lanes, lane l
//               adding x[k]·w[k] for k = l, l+16, … with fused multiply-adds in float32, then the
//               lanes fold as (l, l+8), (l, l+4), (l, l+2), (l, l+1). K counts as padded with zeros
//               to a multiple of 16. kInOut weights run one fused chain over k ascending. The bias
//               is added last. float32 is always this class.
//   avx512bf16  the same, but a product of bf16 rows with bf16 kOutIn weights uses vdpbf16ps (pairs
//               of k in 16 lanes, the odd member first, subnormals as zero, K padded to a multiple
//               of 32), then folds alike.
//   amx         the same again by tdpbf16ps: for each 32 values of k one fused chain over the even
//               ones and one over the odd, both from zero; their sum is added to the output, blocks
//               of k ascending; subnormals as zero, K padded to a multiple of 32. So is attention
//               over a bf16 cache (AttentionTask).
//
// Weights and vectors may be float32, bf16 or float16; they are upcast to float32 exactly. Operands
// are aligned to their element size and nothing beyond their last element is read.
//
// Weights may also be quantised: lie in blocks (Q8_0, Q4_0, Q4_K, Q5_K, Q6_K, MXFP4), or be kI8,
// kI4 or kE2M1 with scales beside them (services/tensor/view.h); along `in` of kOutIn, along `out`
// of kInOut, which is a multiple of 32 (256 of K blocks), as are groups of columns. They are used
// as they lie, with one arithmetic on every target and in every class, called int8:
//
//   A bf16 row of x is quantised in pieces of 32 values: s = max|x| / 127, q = x·(127 / max|x|)
//   rounded to nearest even. (Pieces below 2^-100 count as zeros; a NaN or an infinity makes the
//   row's products NaN.) With w(i) = d·c(i) - min in integers c, a piece gives the exact integer
//   sum Σ q·c, and y is one fused chain over pieces ascending: y = fma(sum, s·d, y), then, where
//   the format has minima (Q4_K, Q5_K), y = fma(s·(-Σ q), min, y). d is the block's or the group's
//   scale, times the six bits of the piece's own where the format has them; the scales of Q6_K's
//   halves of a piece and zero points are part of c, which of e2m1 is doubled. The bias is added
//   last.
//
// Weights may be kF8E4M3 with scales beside them, whose groups of columns are multiples of 128 or
// whole rows. For a bf16 row each 128 values of k, and the last that there are, give the product p
// of the class as if the weights were bf16 (which they are, exactly); y is one fused chain over
// them, y = fma(p, scale, y). (0x7f and 0xff may count as ±480: they are no numbers.)
//
// With float32 rows, and as kInOut, quantised weights are upcast (rounded once where they need more
// than 24 bits) and multiplied as the fma class does.
// exp and what is built on it (softmax, SiLU, sigmoid) are our own polynomials, the same on every
// target. All of it is reference.cc, written as plain loops; the tests hold each target against it.
//
// Thread-safety: a Compute may be used by one thread at a time (it drives the pool); the serial
// functions at the end by any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "services/kernels/thread_pool.h"
#include "services/tensor/dtype.h"
#include "services/tensor/kv_vector.h"
#include "services/tensor/view.h"

namespace switchyard::kernels {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx, kNeon, kNeonDotprod };

// "portable", "avx2", "avx512", "avx512bf16", "amx"; "neon", "neon-dotprod"
std::string_view Name(Isa isa);
// "auto" or a name; FAILED_PRECONDITION names what this CPU supports.
absl::StatusOr<Isa> ChooseIsa(std::string_view name);
std::vector<Isa> SupportedIsas();  // of this CPU, ascending; always holds kPortable
// "f32" for float32 activations on any ISA; "bf16-fma", "bf16-avx512bf16" or "bf16-amx" otherwise.
// Part of the numerics id: replicas of one class are bit-equal.
std::string_view ArithmeticClass(DType activations, Isa isa);
// Whether bf16 rows meet such weights in integers (the arithmetic int8 above).
bool MeetsIntegers(DType weights, WeightLayout layout);
// Whether products of bf16 rows with such weights differ between the classes of bf16.
bool ClassMatters(DType weights, WeightLayout layout);

// Activations in memory: float32 or bf16 rows.
struct Rows {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t stride = 0;  // elements from row to row
};
struct MutableRows {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t stride = 0;
};

// y[m, n] = Σ_k x[row(m), k] · w(n, k) + bias[n], for m in [0, rows). y is float32.
struct MatMulTask {
  Rows x;
  int64_t rows = 0;
  const int32_t* gather = nullptr;  // row(m) = gather[m]; null: row(m) = m
  WeightView w;
  VectorView bias;  // may be empty
  float* y = nullptr;
  int64_t y_stride = 0;
};

// Online-softmax attention over a paged KV cache, for all heads of `rows` queries.
//
// The cache of one layer is an array of blocks of `block_tokens` tokens; position p of a sequence
// lies in block table[p / block_tokens], slot p % block_tokens. A token's record is `kv_heads` keys
// of key_dim, then (unless values_in_key) `kv_heads` values of value_dim, each a vector as
// services/tensor/kv_vector.h lays it out. For MLA the record is [latent | k_rope] with
// kv_heads = 1, and the value is the first value_dim columns of the key.
// Keys are visited in ascending blocks at absolute multiples of block_tokens; a block that is
// entirely masked is skipped, which changes nothing. Query i sees key j iff j <= i and, with a
// window, i - j < window. A score is the 16-lane dot of q and k, times scale; the sum of values is
// a fused chain over keys ascending; a sink joins the denominator last. Quantised numbers are
// multiplied by their scale first, in float32. Slots of masked positions
// are never used, so they may hold anything. Consecutive rows that name the same block table are
// computed together (it is only faster).
//
// The class amx over a bf16 cache: q is rounded to bf16, a score is the class's dot times scale;
// weights are rounded to bf16 too before they meet values (not before they are summed, slot j of a
// block in lane j % 16), and a block adds the class's dot over its slots, whose weights are 0 where
// they are not seen. A value that is no number reaches the queries of its sequence that are in its
// block.
struct AttentionTask {
  const float* q = nullptr;  // [rows, heads, key_dim], scaled by softmax_scale inside
  float* out = nullptr;      // [rows, heads, value_dim]
  int64_t rows = 0;
  const int32_t* positions = nullptr;            // [rows]: absolute position of each query
  const int32_t* const* block_tables = nullptr;  // [rows]: block table of the row's sequence
  const std::byte* cache = nullptr;              // block 0 of this layer
  DType cache_dtype = DType::kBF16;              // kBF16, kF32, kI8 or kF8E4M3
  int64_t block_stride_bytes = 0;
  int block_tokens = 0;
  int heads = 0, kv_heads = 0;
  int key_dim = 0, value_dim = 0;
  bool values_in_key = false;
  float scale = 0;
  int window = 0;    // 0: none
  VectorView sinks;  // [heads] or empty
};

// The pool and the instruction set, passed by reference to whoever computes.
class Compute {
 public:
  Compute(Isa isa, ThreadPool& pool);

  Isa isa() const { return isa_; }
  ThreadPool& pool() const { return pool_; }

  // All tasks as one parallel job (a single projection, the heads of an absorption, the experts of
  // a layer). Tasks must write disjoint outputs.
  void MatMul(std::span<const MatMulTask> tasks) const;
  void MatMul(const MatMulTask& task) const { MatMul(std::span(&task, 1)); }

  void Attention(const AttentionTask& task) const;

  // out[r] = x[r] / rms(x[r]) · weight, over `dim` columns; an empty weight is all ones. out is
  // float32 or bf16 and may be x.
  void RmsNorm(const float* x, int64_t x_stride, int64_t rows, int64_t dim, VectorView weight,
               float eps, MutableRows out) const;

  // out[r, i] = silu(gate)·up (or the clamped form) of gate_up rows. `interleaved`: columns are
  // g0 u0 g1 u1 …; otherwise gate in the first `width` columns and up in the next.
  struct ActivationTask {
    const float* gate_up = nullptr;
    int64_t stride = 0;
    int64_t rows = 0;
    int64_t width = 0;
    bool interleaved = false;
    bool clamped = false;  // gpt-oss: (up + 1)·gate·sigmoid(alpha·gate), clamped to ±limit
    float limit = 0, alpha = 0;
    MutableRows out;
  };
  void Activate(std::span<const ActivationTask> tasks) const;

 private:
  Isa isa_;
  ThreadPool& pool_;
};

// ---- serial functions, the same bits on every target ----

// Rotates in place `heads` heads, `head_stride` floats apart, the first `dim` floats of each. cos
// and sin are the [dim/2] entries of the position (from inv_freq after the spec's scaling, times
// its attention factor). `interleaved` rotates (x0, x1), (x2, x3), … and leaves each pair where it
// is; otherwise (x[i], x[i + dim/2]) are the pairs.
void ApplyRope(float* x, int64_t heads, int64_t head_stride, int dim, bool interleaved,
               const float* cos, const float* sin);

float Exp(float x);
float Sigmoid(float x);
void Sigmoid(float* x, int64_t n);  // in place, the same bits as one by one
void Softmax(float* x, int64_t n);  // in place, max subtracted; sums in 16 lanes as above

// acc[i] = fma(w, x[i], acc[i]).
void AddScaled(float* acc, const float* x, float w, int64_t n);
void Add(float* acc, const float* x, int64_t n);
// Rounds to nearest even (bf16, f16) or copies (f32).
void Convert(const float* x, int64_t n, DType to, void* out);
// A vector into the KV cache: KvVectorBytes(to, dim) bytes, whose layout is
// services/tensor/kv_vector.h.
void StoreKv(const float* x, int64_t dim, DType to, std::byte* out);
// `from` may be blocked, n then whole blocks.
void ConvertToFloat(const void* x, DType from, int64_t n, float* out);
// A stored row of weights, quantised or not.
void RowToFloat(const WeightView& w, int64_t row, float* out);

}  // namespace switchyard::kernels
