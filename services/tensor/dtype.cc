#include "services/tensor/dtype.h"

#include "services/base/check.h"
#include "services/base/status.h"

namespace switchyard {
namespace {

struct Row {
  DType dtype;
  BlockShape block;
  std::string_view name;
  std::string_view safetensors;  // empty: none
};

constexpr Row kRows[] = {
    {DType::kF32, {1, 4}, "float32", "F32"},
    {DType::kBF16, {1, 2}, "bfloat16", "BF16"},
    {DType::kF16, {1, 2}, "float16", "F16"},
    {DType::kF8E4M3, {1, 1}, "float8_e4m3", "F8_E4M3"},
    {DType::kF8E5M2, {1, 1}, "float8_e5m2", "F8_E5M2"},
    {DType::kF64, {1, 8}, "float64", "F64"},
    {DType::kI64, {1, 8}, "int64", "I64"},
    {DType::kI32, {1, 4}, "int32", "I32"},
    {DType::kI16, {1, 2}, "int16", "I16"},
    {DType::kI8, {1, 1}, "int8", "I8"},
    {DType::kU8, {1, 1}, "uint8", "U8"},
    {DType::kBool, {1, 1}, "bool", "BOOL"},
    {DType::kI4, {2, 1}, "int4", ""},
    {DType::kE2M1, {2, 1}, "float4_e2m1", ""},
    {DType::kQ8_0, {32, 34}, "Q8_0", ""},
    {DType::kQ4_0, {32, 18}, "Q4_0", ""},
    {DType::kQ4K, {256, 144}, "Q4_K", ""},
    {DType::kQ5K, {256, 176}, "Q5_K", ""},
    {DType::kQ6K, {256, 210}, "Q6_K", ""},
    {DType::kMXFP4, {32, 17}, "MXFP4", ""},
};

}  // namespace

BlockShape BlockOf(DType dtype) { return kRows[static_cast<size_t>(dtype)].block; }

size_t SizeOf(DType dtype) {
  SY_CHECK(BlockOf(dtype).elements == 1);
  return static_cast<size_t>(BlockOf(dtype).bytes);
}

std::string_view Name(DType dtype) { return kRows[static_cast<size_t>(dtype)].name; }

std::string_view SafetensorsName(DType dtype) {
  return kRows[static_cast<size_t>(dtype)].safetensors;
}

absl::StatusOr<DType> DTypeFromSafetensors(std::string_view name) {
  for (const Row& row : kRows) {
    if (!name.empty() && row.safetensors == name) return row.dtype;
  }
  return InvalidArgument(
      "unknown dtype \"{}\"; known: F32, BF16, F16, F8_E4M3, F8_E5M2, F64, I64, I32, I16, I8, U8, "
      "BOOL",
      name);
}

float ToFloat(f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu;
  const uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  // Subnormal: mantissa × 2^-24, exact in float32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

f16 ToF16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Adding 0.5 aligns the result's last bit with 2^-24; the hardware rounds to nearest even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

float ToFloat(f8e4m3 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x80u) << 24;
  const uint32_t exponent = (x.bits >> 3) & 0xfu;
  const uint32_t mantissa = x.bits & 7u;
  if ((x.bits & 0x7fu) == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 120u) << 23) | (mantissa << 20));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-9f;
  return sign != 0 ? -magnitude : magnitude;
}

f8e4m3 ToF8E4M3(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint8_t sign = static_cast<uint8_t>((u >> 24) & 0x80u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint8_t>(sign | 0x7fu)};
  if (magnitude >= 0x43e00000u) return {static_cast<uint8_t>(sign | 0x7eu)};
  if (magnitude < 0x3c800000u) {
    // As in ToF16: below 2^-6 the last bit is worth 2^-9.
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
    return {static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x46800000u))};
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return {static_cast<uint8_t>(sign | ((rounded - 0x3c000000u) >> 20))};
}

}  // namespace switchyard
