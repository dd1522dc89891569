// Random weights as tiles (services/kernels/cuda/tiles.h), and what they are in float64.
#pragma once

#include <cmath>
#include <vector>

#include "services/kernels/cuda/tiles.h"
#include "tools/bench/gpu_bench/check.h"

namespace switchyard::gpu_bench {

// Values of the formats' codes.
inline double E4M3(uint32_t code) {
  const auto exponent = static_cast<int>(code >> 3 & 15), mantissa = static_cast<int>(code & 7);
  const double value =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 128 ? -value : value;
}
inline double E2M1(uint32_t code) {
  static constexpr double kValues[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code & 8 ? -kValues[code & 7] : kValues[code & 7];
}

// Products with rows of variance 1 have about variance 1 as well.
class RandomMatrix {
 public:
  // Writes into `tiles`: zeros, of shape.bytes(), which outlive it.
  RandomMatrix(const cuda::TileShape& shape, uint64_t seed, unsigned char* tiles)
      : shape_(shape), tiles_(tiles) {
    Random random(seed);
    const float size = 1.0f / std::sqrt(static_cast<float>(shape.columns));
    for (int r = 0; r < shape.rows; ++r) {
      for (int k = 0; k < shape.columns; ++k) {
        const size_t bit = cuda::ElementBit(shape, r, k);
        unsigned char* const at = tiles + bit / 8;
        uint32_t code = random.Bits();
        if (shape.format == cuda::Format::kBf16) {
          const uint16_t bits = ToBf16(random.Normal() * size);
          std::memcpy(at, &bits, sizeof(bits));
        } else if (cuda::BitsOf(shape.format) == 8) {
          if (shape.format == cuda::Format::kE4M3 && (code & 127) == 127) code = 1;  // no number
          *at = static_cast<unsigned char>(code);
        } else {
          *at = static_cast<unsigned char>(*at | (code & 15) << bit % 8);
        }
        if (shape.group > 0 && k % cuda::kSlab == 0) PutScale(r, k);
      }
    }
  }

  void Row(int32_t r, std::vector<double>& out) const {
    out.resize(static_cast<size_t>(shape_.columns));
    for (int32_t k = 0; k < shape_.columns; ++k) out[static_cast<size_t>(k)] = At(r, k);
  }
  double At(int32_t r, int32_t k) const {
    const size_t bit = cuda::ElementBit(shape_, r, k);
    const uint32_t byte = tiles_[bit / 8], nibble = byte >> bit % 8 & 15;
    uint16_t bits;
    switch (shape_.format) {
      case cuda::Format::kBf16:
        std::memcpy(&bits, tiles_ + bit / 8, sizeof(bits));
        return FromBf16(bits);
      case cuda::Format::kE4M3:
        return E4M3(byte) * Scale(r, k);
      case cuda::Format::kI8:
        return static_cast<int8_t>(byte) * Scale(r, k);
      case cuda::Format::kI4:
        return (static_cast<int>(nibble) - (shape_.zeros ? Zero(r, k) : 8)) * Scale(r, k);
      default:
        return E2M1(nibble) * Scale(r, k);
    }
  }
  const cuda::TileShape& shape() const { return shape_; }

 private:
  void PutScale(int r, int k) {
    const auto scale = static_cast<float>(Scale(r, k));
    std::memcpy(tiles_ + cuda::ScaleByte(shape_, r, k), &scale, sizeof(scale));
    if (!shape_.zeros) return;
    const uint32_t zero = cuda::ZeroWord(Zero(r, k));
    std::memcpy(tiles_ + cuda::ZeroByte(shape_, r, k), &zero, sizeof(zero));
  }
  // Of float32; another for each group.
  double Scale(int r, int k) const {
    static constexpr float kCodes[] = {1, 130, 74, 4.7f, 2.9f};  // about their root mean square
    const int row = shape_.group_rows == 1 ? r : r / 8;
    const float vary = 0.7f + 0.1f * static_cast<float>(row % 5 + k / shape_.group % 3);
    const float size = kCodes[static_cast<int>(shape_.format)];
    return static_cast<double>(vary / (size * std::sqrt(static_cast<float>(shape_.columns))));
  }
  int Zero(int r, int k) const { return (r + k / shape_.group) % 16; }

  const cuda::TileShape shape_;
  unsigned char* const tiles_;
};

}  // namespace switchyard::gpu_bench
