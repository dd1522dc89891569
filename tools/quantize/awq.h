// AWQ's scales: columns of a matrix whose inputs are large are multiplied before rounding, and
// their inputs divided as much, where that loses less of the product.
//
//   Lin et al., AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration
//   https://arxiv.org/abs/2306.00978
//
// A column's scale is (mean |x|)^alpha, alpha of a grid; what is lost is Σ mean x² · (w - kept)²,
// inputs taken as independent of each other.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tools/quantize/activation_stats.h"

namespace switchyard::quantize {

// The scale of each column of `w` [rows, in], a sample of what meets the same inputs; all 1 where
// `stats` has fewer than kAwqLeastRows rows, or where nothing is better than that.
inline constexpr int64_t kAwqLeastRows = 8;
std::vector<float> SearchAwqScale(std::span<const float> w, int64_t in, int64_t group,
                                  const ChannelStats& stats, kernels::ThreadPool& pool);

// What each column's error counts, once columns were multiplied by `scale`; empty with too few
// rows.
std::vector<float> ImportanceOf(const ChannelStats& stats, std::span<const float> scale);

}  // namespace switchyard::quantize
