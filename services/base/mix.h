// A hash of one number into another: every bit of the input moves every bit of the output.
#pragma once

#include <cstdint>

namespace switchyard {

// SplitMix64's finaliser (Steele, Lea, Flood 2014). What stands on it, such as which worker takes
// an expert over, must come out the same in all processes of a cluster: it stays as it is.
constexpr uint64_t MixBits(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace switchyard
