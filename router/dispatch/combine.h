// The router's half of the fixed tree: of one token of a job whose rows are here, the sum over
// reduction groups ascending, each as its worker sent it or made here from fp32 rows, bit-equal.
// Pure; any thread, of different tokens.
#pragma once

#include <cstdint>

#include "router/dispatch/job.h"
#include "services/tensor/dtype.h"

namespace switchyard::router {

struct CombineTerms {
  int64_t hidden = 0;
  int experts_per_group = 1;
  DType dtype = DType::kBF16;  // of sums
};

// Fills the token's row of moe.out; with zeros, and moe.lost, where a result of it is nowhere.
void CombineToken(const Job& job, const CombineTerms& terms, int64_t token);

}  // namespace switchyard::router
