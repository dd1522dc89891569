// How long a step takes: fixed + rows · row + attended · attend, learned from the steps that ran.
// `attended` is the sum over a step's rows of the tokens that each looks at.
//
// Least squares of the relative error with exponential forgetting. Where the steps of late do not
// tell one term from another (the same few rows, over and over) the old answer stays.
//
// Not thread-safe: the engine thread owns it.
#pragma once

#include <array>
#include <cstdint>

namespace switchyard::router {

struct StepShape {
  int64_t rows = 0;
  int64_t attended = 0;

  // `count` more rows of a sequence, from `position` on.
  void Add(int64_t position, int64_t count) {
    rows += count;
    attended += count * position + count * (count + 1) / 2;
  }
};

struct StepCost {
  double fixed_ms = 0, row_ms = 0, attend_ms = 0;  // all >= 0; all 0: not known

  double Of(const StepShape& s) const {
    return fixed_ms + row_ms * static_cast<double>(s.rows) +
           attend_ms * static_cast<double>(s.attended);
  }
  // Rows of one sequence, from `position` on, that fit into `ms` beside what is fixed.
  int64_t RowsWithin(double ms, int64_t position) const;
};

class StepCostModel {
 public:
  void Observe(const StepShape& shape, double ms);
  StepCost cost() const;

 private:
  static constexpr int kTerms = 3;
  using Vector = std::array<double, kTerms>;

  std::array<Vector, kTerms> a_ = {};  // sum of u uᵀ, u = terms / ms, forgetting
  Vector b_ = {};                      // sum of u
  Vector weights_ = {};                // of the scaled terms
};

}  // namespace switchyard::router
