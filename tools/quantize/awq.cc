#include "tools/quantize/awq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tools/quantize/matrix_codec.h"

namespace switchyard::quantize {
namespace {

constexpr int kGrid = 20;  // alpha = i / kGrid

std::vector<float> ScaleAt(double alpha, const ChannelStats& stats) {
  std::vector<double> scale;
  for (const double sum : stats.magnitude) {
    scale.push_back(std::max(std::pow(sum / static_cast<double>(stats.rows), alpha), 1e-4));
  }
  // Around 1, so that neither side leaves the range of its dtype.
  const auto [least, most] = std::minmax_element(scale.begin(), scale.end());
  const double middle = std::sqrt(*least * *most);
  std::vector<float> out;
  for (const double s : scale) out.push_back(static_cast<float>(s / middle));
  return out;
}

double LossOfRow(const float* w, int64_t in, int64_t group, const float* scale,
                 const float* importance, float* scaled) {
  double loss = 0;
  for (int64_t first = 0; first < in; first += group) {
    for (int64_t i = 0; i < group; ++i) scaled[i] = w[first + i] * scale[first + i];
    const float by = PlainInt4Scale(scaled, group);
    if (by == 0) continue;
    const float inverse = 1.0f / by;
    float sum = 0;
    for (int64_t i = 0; i < group; ++i) {
      const float lost = scaled[i] - RoundInt4(scaled[i] * inverse) * by;
      sum += lost * lost * importance[first + i];
    }
    loss += sum;
  }
  return loss;
}

double LossOf(std::span<const float> w, int64_t in, int64_t group, const std::vector<float>& scale,
              const ChannelStats& stats, kernels::ThreadPool& pool) {
  const std::vector<float> importance = ImportanceOf(stats, scale);
  std::vector<double> losses(w.size() / static_cast<size_t>(in));
  pool.ParallelFor(static_cast<int64_t>(losses.size()), 8, [&](int64_t begin, int64_t end) {
    std::vector<float> scaled(static_cast<size_t>(group));
    for (int64_t r = begin; r < end; ++r) {
      losses[static_cast<size_t>(r)] =
          LossOfRow(w.data() + r * in, in, group, scale.data(), importance.data(), scaled.data());
    }
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

}  // namespace

std::vector<float> ImportanceOf(const ChannelStats& stats, std::span<const float> scale) {
  std::vector<float> importance;
  if (stats.rows < kAwqLeastRows) return importance;
  for (size_t c = 0; c < scale.size(); ++c) {
    const double mean = stats.square[c] / static_cast<double>(stats.rows);
    importance.push_back(static_cast<float>(mean / (double{scale[c]} * scale[c])));
  }
  return importance;
}

std::vector<float> SearchAwqScale(std::span<const float> w, int64_t in, int64_t group,
                                  const ChannelStats& stats, kernels::ThreadPool& pool) {
  std::vector<float> best(static_cast<size_t>(in), 1.0f);
  if (stats.rows < kAwqLeastRows) return best;
  double least = LossOf(w, in, group, best, stats, pool);
  for (int i = 1; i <= kGrid; ++i) {
    std::vector<float> scale = ScaleAt(static_cast<double>(i) / kGrid, stats);
    const double loss = LossOf(w, in, group, scale, stats, pool);
    if (loss < least) least = loss, best = std::move(scale);
  }
  return best;
}

}  // namespace switchyard::quantize
