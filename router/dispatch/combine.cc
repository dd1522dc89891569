#include "router/dispatch/combine.h"

#include <algorithm>

#include "services/kernels/kernels.h"

namespace switchyard::router {
namespace {

// Rows are combined a slice at a time, so that what is between lies on the stack.
constexpr int64_t kSlice = 1024;

bool Whole(const Job& job, int64_t token) {
  const int64_t first = token * job.moe.top_k;
  for (int64_t pair = first; pair < first + job.moe.top_k; ++pair) {
    if (job.moe.experts[pair] == kNoExpert) return true;
    if (job.source(pair).part < 0) return false;
  }
  return true;
}

void CombineSlice(const Job& job, const CombineTerms& terms, int64_t token, int64_t from,
                  int64_t n) {
  float* out = job.moe.out + token * terms.hidden + from;
  std::fill(out, out + n, 0.0f);
  float sum[kSlice], rounded[kSlice];
  const int64_t first = token * job.moe.top_k;
  const int32_t* ids = job.moe.experts + first;
  const auto payload = [&](const PairSource& s) {
    return job.parts[static_cast<size_t>(s.part)].answer.payload.data();
  };
  for (int k = 0; k < job.moe.top_k && ids[k] != kNoExpert;) {
    const int group = ids[k] / terms.experts_per_group;
    int end = k + 1;
    while (end < job.moe.top_k && ids[end] != kNoExpert &&
           ids[end] / terms.experts_per_group == group) {
      ++end;
    }
    if (const PairSource& s = job.source(first + k); s.sum) {
      const int64_t at = int64_t{s.slot} * terms.hidden + from;
      kernels::ConvertToFloat(payload(s) + static_cast<size_t>(at) * SizeOf(terms.dtype),
                              terms.dtype, n, sum);
    } else {
      std::fill(sum, sum + n, 0.0f);
      for (int i = k; i < end; ++i) {
        const PairSource& row = job.source(first + i);
        const size_t offset = job.plan.parts[static_cast<size_t>(row.part)].layout.rows_offset(
            static_cast<uint32_t>(terms.hidden), terms.dtype);
        const auto* rows = reinterpret_cast<const float*>(payload(row) + offset);
        kernels::AddScaled(sum, rows + int64_t{row.slot} * terms.hidden + from,
                           job.moe.weights[first + i], n);
      }
      kernels::Convert(sum, n, terms.dtype, rounded);
      kernels::ConvertToFloat(rounded, terms.dtype, n, sum);
    }
    kernels::Add(out, sum, n);
    k = end;
  }
}

}  // namespace

void CombineToken(const Job& job, const CombineTerms& terms, int64_t token) {
  if (!Whole(job, token)) {
    std::fill_n(job.moe.out + token * terms.hidden, terms.hidden, 0.0f);
    job.moe.lost[token] = 1;
    return;
  }
  for (int64_t from = 0; from < terms.hidden; from += kSlice) {
    CombineSlice(job, terms, token, from, std::min(kSlice, terms.hidden - from));
  }
}

}  // namespace switchyard::router
