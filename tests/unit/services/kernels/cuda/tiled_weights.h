// Random weights as tiles, and what they are in float64, for tests of products.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "services/kernels/cuda/tiles.h"
#include "tests/support/simt/ptx_host.cuh"

namespace switchyard::cuda {

// Values of the formats' codes.
inline double E4M3(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double value =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 128 ? -value : value;
}
inline double E2M1(int code) {
  static constexpr double kValues[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code & 8 ? -kValues[code & 7] : kValues[code & 7];
}

class TiledWeights {
 public:
  TiledWeights(const TileShape& shape, uint32_t seed)
      : shape_(shape), bytes_(shape.bytes() + 1024) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> small(0.5f, 2.0f);
    auto* const at = tiles();
    for (int r = 0; r < shape.rows; ++r) {
      for (int k = 0; k < shape.columns; ++k) {
        const size_t bit = ElementBit(shape, r, k);
        uint32_t code = random();
        if (shape.format == Format::kBf16) {
          code = ToBf16(small(random) - 1.25f);
          at[bit / 8] = static_cast<unsigned char>(code);
          at[bit / 8 + 1] = static_cast<unsigned char>(code >> 8);
        } else if (BitsOf(shape.format) == 8) {
          if (shape.format == Format::kE4M3 && (code & 127) == 127) code = 1;  // no number
          at[bit / 8] = static_cast<unsigned char>(code);
        } else {
          at[bit / 8] = static_cast<unsigned char>(at[bit / 8] | (code & 15) << bit % 8);
        }
        if (shape.group > 0 && k % 32 == 0) {
          *reinterpret_cast<float*>(at + ScaleByte(shape, r, k)) = Scale(r, k);
          if (shape.zeros)
            *reinterpret_cast<uint32_t*>(at + ZeroByte(shape, r, k)) = ZeroWord(Zero(r, k));
        }
      }
    }
  }
  unsigned char* tiles() {
    return bytes_.data() + (1024 - reinterpret_cast<uintptr_t>(bytes_.data()) % 1024) % 1024;
  }
  double At(int r, int k) {
    const size_t bit = ElementBit(shape_, r, k);
    const int byte = tiles()[bit / 8], nibble = byte >> bit % 8 & 15;
    switch (shape_.format) {
      case Format::kBf16:
        return FromBf16(static_cast<uint32_t>(byte | tiles()[bit / 8 + 1] << 8));
      case Format::kE4M3:
        return E4M3(byte) * Scale(r, k);
      case Format::kI8:
        return static_cast<int8_t>(byte) * Scale(r, k);
      case Format::kI4:
        return (nibble - (shape_.zeros ? Zero(r, k) : 8)) * Scale(r, k);
      default:
        return E2M1(nibble) * Scale(r, k);
    }
  }

 private:
  float Scale(int r, int k) const {
    const int rows = shape_.group_rows;
    return 1.0f / static_cast<float>(3 + r / rows % 5 + k / shape_.group % 7);
  }
  int Zero(int r, int k) const { return (r + k / shape_.group) % 16; }

  const TileShape shape_;
  std::vector<unsigned char> bytes_;
};

}  // namespace switchyard::cuda
