// Element types and their scalar conversions (the truth that every vector kernel is tested
// against).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"

namespace switchyard {

enum class DType : uint8_t {
  kF32,
  kBF16,
  kF16,
  kF8E4M3,
  kF8E5M2,
  kF64,
  kI64,
  kI32,
  kI16,
  kI8,
  kU8,
  kBool,
  // Two to a byte, the low nibble first; weights only, with scales beside them (view.h).
  kI4,    // c in [0, 16)
  kE2M1,  // OCP's FP4: 0 0.5 1 1.5 2 3 4 6, then the same with a minus
  // GGUF's blocks, as they lie in the file: weights only, a row is a whole number of blocks.
  // https://github.com/ggml-org/ggml, ggml-common.h (block_q8_0, …)
  kQ8_0,
  kQ4_0,
  kQ4K,
  kQ5K,
  kQ6K,
  kMXFP4,
};

// Elements that are stored as one unit, and its bytes: {1, size} of a plain dtype, {2, 1} of
// nibbles, {32, 34} of Q8_0.
struct BlockShape {
  int64_t elements = 1;
  int64_t bytes = 0;
};
BlockShape BlockOf(DType dtype);
// Whether weights of it carry their own scales.
inline bool IsBlocked(DType dtype) { return dtype >= DType::kQ8_0; }
// Bytes of `elements` elements, which are a whole number of units.
inline int64_t BytesOf(DType dtype, int64_t elements) {
  const BlockShape block = BlockOf(dtype);
  return elements / block.elements * block.bytes;
}
// Bytes of one element of a dtype that stores each by itself (programmer's error otherwise).
size_t SizeOf(DType dtype);
// "bfloat16", "float32", … as users and config.json write them; "int4"; "Q8_0", … of blocks.
std::string_view Name(DType dtype);
// safetensors' names ("BF16", "F32", …). INVALID_ARGUMENT names what is supported.
absl::StatusOr<DType> DTypeFromSafetensors(std::string_view name);
std::string_view SafetensorsName(DType dtype);  // empty: it has none

// A bfloat16 is the upper half of a float32. Conversion from float rounds to nearest even and keeps
// NaN a (quiet) NaN.
struct bf16 {
  uint16_t bits;
};
inline float ToFloat(bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
inline bf16 ToBF16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

// IEEE 754 binary16.
struct f16 {
  uint16_t bits;
};
float ToFloat(f16 x);
f16 ToF16(float x);

// OCP's FP8 E4M3: bias 7, up to 448, no infinities, 0x7f and 0xff NaN. Conversion from float rounds
// to nearest even; what is beyond 448 becomes 448.
struct f8e4m3 {
  uint8_t bits;
};
float ToFloat(f8e4m3 x);
f8e4m3 ToF8E4M3(float x);

}  // namespace switchyard
