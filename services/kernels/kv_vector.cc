#include "services/kernels/kv_vector.h"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "services/kernels/kernels.h"
#include "services/kernels/scalar_math.h"

namespace switchyard::kernels {
namespace {

constexpr uint32_t kMagnitudeBits = 0x7fffffffu, kInfinityBits = 0x7f800000u;
constexpr float kLeastMagnitude = 0x1p-100f;

// Of the largest magnitude, as bits: so NaNs are the largest.
uint32_t MaxMagnitude(const float* x, int64_t n) {
  uint32_t max = 0;
  for (int64_t i = 0; i < n; ++i) {
    max = std::max(max, std::bit_cast<uint32_t>(x[i]) & kMagnitudeBits);
  }
  return max;
}

bf16 StorePiece(const float* x, int64_t n, DType to, uint8_t* out) {
  const uint32_t max = MaxMagnitude(x, n);
  if (max >= kInfinityBits || std::bit_cast<float>(max) < kLeastMagnitude) {
    std::memset(out, 0, static_cast<size_t>(n));
    return max >= kInfinityBits ? bf16{0x7fc0} : bf16{0};
  }
  const bool int8 = to == DType::kI8;
  const bf16 scale = ToBF16(std::bit_cast<float>(max) / (int8 ? 127.0f : 448.0f));
  const float divisor = ToFloat(scale);
  if (int8) {
    // The integer stands in the low bits. Rounding the scale cannot bring it to 127.5.
    for (int64_t i = 0; i < n; ++i) {
      out[i] = static_cast<uint8_t>(std::bit_cast<uint32_t>(x[i] / divisor + kRoundMagic));
    }
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = ToF8E4M3(x[i] / divisor).bits;
  }
  return scale;
}

}  // namespace

void StoreKv(const float* x, int64_t dim, DType to, std::byte* out) {
  if (!IsKvQuantised(to)) return Convert(x, dim, to, out);
  std::byte* scales = out + dim;
  for (int64_t i = 0; i < dim; i += kKvPiece, scales += sizeof(bf16)) {
    const bf16 scale =
        StorePiece(x + i, std::min(kKvPiece, dim - i), to, reinterpret_cast<uint8_t*>(out + i));
    std::memcpy(scales, &scale, sizeof scale);
  }
}

}  // namespace switchyard::kernels
