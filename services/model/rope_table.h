// Rotary position tables: cos and sin of every position, made once in double precision and kept as
// float rows. Grown in chunks, so that a model with a long context pays for the positions it uses.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "services/model/spec.h"

namespace switchyard {

// Inverse frequencies [rope.dim / 2], as Hugging Face's modeling_rope_utils defines them for each
// scaling; attention_factor is not in them.
std::vector<double> InverseFrequencies(const RopeSpec& rope);

// Thread rule: Reserve is called by one thread (the engine). Cos and Sin may be called by any
// thread for positions that were reserved before (rows never move), also while Reserve runs.
class RopeTable {
 public:
  // Positions [0, max_position) can be reserved.
  RopeTable(const RopeSpec& rope, int64_t max_position);
  RopeTable(const RopeTable&) = delete;
  RopeTable& operator=(const RopeTable&) = delete;

  // Makes rows for positions [0, end). end <= max_position.
  void Reserve(int64_t end);

  // rope.dim / 2 values each, times the attention factor. `position` must be reserved.
  const float* Cos(int64_t position) const { return Row(position); }
  const float* Sin(int64_t position) const { return Row(position) + half_; }
  int64_t half() const { return half_; }
  int64_t reserved() const { return reserved_; }

 private:
  static constexpr int64_t kChunk = 1024;  // positions

  const float* Row(int64_t position) const {
    return chunks_[static_cast<size_t>(position / kChunk)].get() + (position % kChunk) * 2 * half_;
  }

  const std::vector<double> inv_freq_;
  const double factor_;
  const int64_t half_;
  const int64_t max_position_;
  int64_t reserved_ = 0;
  std::vector<std::unique_ptr<float[]>> chunks_;  // sized once; each [kChunk][cos half | sin half]
};

}  // namespace switchyard
