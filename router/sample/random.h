// Randomness without state: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
// as easy as 1, 2, 3", SC 2011) as a function of (seed, choice, position), so that a token does not
// depend on what was drawn before it, elsewhere or in an earlier attempt.
#pragma once

#include <array>
#include <cstdint>

namespace switchyard::router {

constexpr std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter,
                                         std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

// Uniform in [0, 1) with 53 bits, for the token at an absolute position of a choice.
constexpr double Uniform(uint64_t seed, int choice, int64_t position) {
  const auto bits = Philox({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                            static_cast<uint32_t>(choice), 0},
                           {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t joined = (uint64_t{bits[0]} << 32) | bits[1];
  return static_cast<double>(joined >> 11) * 0x1p-53;
}

}  // namespace switchyard::router
