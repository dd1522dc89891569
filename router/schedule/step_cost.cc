#include "router/schedule/step_cost.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace switchyard::router {
namespace {

constexpr double kForget = 0.98;  // some fifty steps
constexpr double kStay = 1e-4;    // how much the old answer weighs against what was seen
// Terms of usual steps are of one order of magnitude.
constexpr double kRowsScale = 1.0 / 32, kAttendedScale = 1.0 / 32768;

}  // namespace

int64_t StepCost::RowsWithin(double ms, int64_t position) const {
  // attend_ms / 2 · n² + row · n = ms
  const double a = attend_ms / 2;
  const double b = row_ms + attend_ms * (static_cast<double>(position) + 0.5);
  constexpr auto kMost = std::numeric_limits<int32_t>::max();
  if (ms <= 0) return 0;
  if (a <= 0 && b <= 0) return kMost;
  const double n = 2 * ms / (b + std::sqrt(b * b + 4 * a * ms));
  return n < kMost ? static_cast<int64_t>(n) : kMost;
}

void StepCostModel::Observe(const StepShape& shape, double ms) {
  if (!(ms > 0) || shape.rows == 0) return;
  const Vector u = {1 / ms, kRowsScale * static_cast<double>(shape.rows) / ms,
                    kAttendedScale * static_cast<double>(shape.attended) / ms};
  double trace = 0;
  for (int i = 0; i < kTerms; ++i) {
    for (int j = 0; j < kTerms; ++j) a_[i][j] = kForget * a_[i][j] + u[i] * u[j];
    b_[i] = kForget * b_[i] + u[i];
    trace += a_[i][i];
  }
  // (A + stay·I) w = b + stay·w_old, by elimination; the matrix is positive definite.
  std::array<Vector, kTerms> m = a_;
  Vector w = b_;
  for (int i = 0; i < kTerms; ++i) {
    m[i][i] += kStay * trace;
    w[i] += kStay * trace * weights_[i];
  }
  for (int i = 0; i < kTerms; ++i) {
    for (int r = i + 1; r < kTerms; ++r) {
      const double f = m[r][i] / m[i][i];
      for (int c = i; c < kTerms; ++c) m[r][c] -= f * m[i][c];
      w[r] -= f * w[i];
    }
  }
  for (int i = kTerms; i-- > 0;) {
    for (int c = i + 1; c < kTerms; ++c) w[i] -= m[i][c] * w[c];
    w[i] /= m[i][i];
  }
  for (int i = 0; i < kTerms; ++i) weights_[i] = std::max(0.0, w[i]);
}

StepCost StepCostModel::cost() const {
  return {.fixed_ms = weights_[0],
          .row_ms = weights_[1] * kRowsScale,
          .attend_ms = weights_[2] * kAttendedScale};
}

}  // namespace switchyard::router
