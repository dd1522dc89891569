// Scalar float32 functions that every target reproduces lane by lane: each is a fixed sequence of
// correctly rounded operations, so the same bits come out of a loop and of a vector register.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace switchyard::kernels {

inline constexpr float kExpLow = -105.0f;  // exp of it rounds to 0
inline constexpr float kExpHigh = 89.0f;   // exp of it is +inf
inline constexpr float kLog2E = 0x1.715476p+0f;
inline constexpr float kLn2High = 0x1.62e4p-1f;  // 16 bits: a product with |n| <= 2^8 is exact
inline constexpr float kLn2Low = 0x1.7f7d1cp-20f;
inline constexpr float kRoundMagic = 0x1.8p23f;  // adding it rounds to an integer in the low bits
inline constexpr float kExp7 = 1.0f / 5040, kExp6 = 1.0f / 720, kExp5 = 1.0f / 120,
                       kExp4 = 1.0f / 24, kExp3 = 1.0f / 6, kExp2 = 0.5f;

// Of a NaN the second operand is returned, as the vector instructions do.
inline float Max(float a, float b) { return a > b ? a : b; }
inline float Min(float a, float b) { return a < b ? a : b; }

// Within one unit in the last place; subnormal results are rounded correctly, NaN stays NaN.
inline float ExpScalar(float x) {
  x = Min(kExpHigh, Max(kExpLow, x));
  const float shifted = std::fma(x, kLog2E, kRoundMagic);
  const float n = shifted - kRoundMagic;
  float r = std::fma(n, -kLn2High, x);
  r = std::fma(n, -kLn2Low, r);
  float p = std::fma(kExp7, r, kExp6);
  p = std::fma(p, r, kExp5);
  p = std::fma(p, r, kExp4);
  p = std::fma(p, r, kExp3);
  p = std::fma(p, r, kExp2);
  p = std::fma(p, r, 1.0f);
  p = std::fma(p, r, 1.0f);
  // 2^n in two steps: n reaches -152 and 128, beyond one exponent field.
  const uint32_t whole = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRoundMagic);
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(whole) >> 1);
  return p * std::bit_cast<float>((half + 127u) << 23) *
         std::bit_cast<float>((whole - half + 127u) << 23);
}

// x · sigmoid(alpha · x)
inline float SiluScalar(float x, float alpha) { return x / (1.0f + ExpScalar(-(alpha * x))); }

}  // namespace switchyard::kernels
