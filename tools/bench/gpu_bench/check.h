// What the checks of a CUDA plugin share: its tables, and where findings go. Nothing but the
// standard library and the plugin's own headers, so that a bare GPU machine can build and run it.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "services/kernels/cuda/abi.h"
#include "services/kernels/cuda/backbone_abi.h"

namespace switchyard::gpu_bench {

struct Options {
  bool quick = false;  // few and small shapes: for sanitizers and emulated devices
  std::string only;    // a part of a case's name
};

// |found - wanted| of vectors over |wanted|. NaN where something is.
struct Distance {
  double apart = 0, length = 0;
  void Add(double found, double wanted) {
    apart += (found - wanted) * (found - wanted);
    length += wanted * wanted;
  }
  double relative() const;
};

// Of one thread.
class Check {
 public:
  Check(const SyCudaApi& api, const SyCudaBackboneApi& backbone, SyCudaContext* context,
        const Options& options);

  const SyCudaApi& api() const { return api_; }
  const SyCudaBackboneApi& backbone() const { return backbone_; }
  SyCudaContext* context() const { return context_; }
  const SyCudaDevice& device() const { return device_; }
  const Options& options() const { return options_; }
  SyCudaError* error() { return &error_; }

  // Whether a case is to be run; its lines then have its name.
  bool Begin(const std::string& name);
  void Expect(bool true_or_failed, const char* format, ...) __attribute__((format(printf, 3, 4)));
  // At most `limit` apart; how much is told either way.
  void Near(const Distance& distance, double limit, const char* what);
  // A call of the plugin. False: it failed, which is told.
  bool Ok(int status, const char* call);
  void End();

  bool lost() const { return lost_; }  // the device: nothing more is to be tried
  int cases() const { return cases_; }
  int failures() const { return failures_; }

  // Bytes copied to device memory that the caller releases; null where that fails, which is told.
  void* Put(const void* bytes, size_t size);
  void Release(void* device) { api_.release(context_, SY_CUDA_DEVICE, device); }

 private:
  const SyCudaApi& api_;
  const SyCudaBackboneApi& backbone_;
  SyCudaContext* const context_;
  const Options options_;
  SyCudaDevice device_ = {};
  SyCudaError error_ = {};
  std::string name_, notes_;
  int cases_ = 0, failures_ = 0, failures_before_ = 0;
  bool lost_ = false;
};

inline double FromBf16(uint16_t bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return static_cast<double>(value);
}
inline uint16_t ToBf16(float value) {  // to nearest, ties to even
  uint32_t word;
  std::memcpy(&word, &value, sizeof(word));
  return static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

// xorshift64*: the same numbers everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x1234567u) {}
  uint32_t Bits() {
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return static_cast<uint32_t>(state_ * 0x2545f4914f6cdd1du >> 32);
  }
  int Below(int n) { return static_cast<int>(Bits() % static_cast<uint32_t>(n)); }
  // About normal: mean 0, variance 1.
  float Normal() {
    float sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<float>(Bits()) * 0x1p-32f;
    return (sum - 2.0f) * 1.7320508f;
  }

 private:
  uint64_t state_;
};

void CheckFfn(Check& check);
void CheckBackbone(Check& check);

}  // namespace switchyard::gpu_bench
