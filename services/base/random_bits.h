// Bits that nobody can foresee: seeds, ids, nonces. Never in what a token depends on, but through a
// seed that is told.
#pragma once

#include <cstdint>
#include <random>

namespace switchyard {

// 64 bits of the system's own source. Thread-safe.
inline uint64_t RandomBits() {
  std::random_device random;
  return (uint64_t{random()} << 32) | random();
}

}  // namespace switchyard
