#include "services/model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>

#include "services/base/check.h"

namespace switchyard {
namespace {

// YaRN: how much of each frequency stays as it is (1) rather than being divided by the factor (0).
class YarnRamp {
 public:
  explicit YarnRamp(const RopeSpec& rope) {
    low_ = CorrectionDim(rope, rope.beta_fast);
    high_ = CorrectionDim(rope, rope.beta_slow);
    if (rope.truncate) {
      low_ = std::floor(low_);
      high_ = std::ceil(high_);
    }
    low_ = std::max(low_, 0.0);
    high_ = std::min(high_, static_cast<double>(rope.dim - 1));
    if (low_ == high_) high_ += 0.001;  // the reference's guard against a division by zero
  }

  double Kept(int pair) const { return 1.0 - std::clamp((pair - low_) / (high_ - low_), 0.0, 1.0); }

 private:
  // The dimension that turns `rotations` times over the original context.
  static double CorrectionDim(const RopeSpec& rope, double rotations) {
    return rope.dim * std::log(rope.original_max_position / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(rope.theta));
  }

  double low_ = 0;
  double high_ = 0;
};

double Llama3Frequency(const RopeSpec& rope, double frequency) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength < rope.original_max_position / rope.high_freq_factor) return frequency;
  if (wavelength > rope.original_max_position / rope.low_freq_factor) {
    return frequency / rope.factor;
  }
  const double smooth = (rope.original_max_position / wavelength - rope.low_freq_factor) /
                        (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - smooth) * frequency / rope.factor + smooth * frequency;
}

}  // namespace

std::vector<double> InverseFrequencies(const RopeSpec& rope) {
  std::vector<double> out(static_cast<size_t>(rope.dim / 2));
  std::optional<YarnRamp> yarn;
  if (rope.scaling == RopeScaling::kYarn) yarn.emplace(rope);
  for (int i = 0; i < rope.dim / 2; ++i) {
    const double plain = std::pow(rope.theta, -2.0 * i / rope.dim);
    double& value = out[static_cast<size_t>(i)];
    switch (rope.scaling) {
      case RopeScaling::kNone:
        value = plain;
        break;
      case RopeScaling::kLinear:
        value = plain / rope.factor;
        break;
      case RopeScaling::kYarn: {
        const double kept = yarn->Kept(i);
        value = plain / rope.factor * (1 - kept) + plain * kept;
        break;
      }
      case RopeScaling::kLlama3:
        value = Llama3Frequency(rope, plain);
        break;
    }
  }
  return out;
}

RopeTable::RopeTable(const RopeSpec& rope, int64_t max_position)
    : inv_freq_(InverseFrequencies(rope)),
      factor_(rope.attention_factor),
      half_(rope.dim / 2),
      max_position_(max_position),
      chunks_(static_cast<size_t>((max_position + kChunk - 1) / kChunk)) {}

void RopeTable::Reserve(int64_t end) {
  SY_CHECK(end <= max_position_);
  while (reserved_ < end) {
    auto chunk = std::make_unique<float[]>(static_cast<size_t>(kChunk * 2 * half_));
    for (int64_t p = 0; p < kChunk; ++p) {
      float* row = chunk.get() + p * 2 * half_;
      for (int64_t i = 0; i < half_; ++i) {
        const double angle = static_cast<double>(reserved_ + p) * inv_freq_[static_cast<size_t>(i)];
        row[i] = static_cast<float>(std::cos(angle) * factor_);
        row[half_ + i] = static_cast<float>(std::sin(angle) * factor_);
      }
    }
    chunks_[static_cast<size_t>(reserved_ / kChunk)] = std::move(chunk);
    reserved_ += kChunk;
  }
}

}  // namespace switchyard
