#include "expert-worker/compute/cpu_backend.h"

#include <algorithm>
#include <cstring>

namespace switchyard::worker {

using expertwire::Answer;
using expertwire::Call;
using expertwire::Segment;
namespace pb = expertwire::pb;

CpuBackend::CpuBackend(const ModelSpec& spec, DType activations, const kernels::Compute& compute)
    : hidden_(spec.hidden),
      dtype_(activations),
      row_bytes_(static_cast<size_t>(spec.hidden) * SizeOf(activations)),
      compute_(compute),
      ffn_(spec, activations, compute) {}

void CpuBackend::Start(const Batch& batch, std::span<Answer> answers) {
  const float* const y = ffn_.Run(GatherRows(batch.parts), batch.gather.data(), batch.runs,
                                  static_cast<int64_t>(batch.gather.size()));
  for (size_t p = 0; p < batch.parts.size(); ++p) {
    WriteAnswer(batch.parts[p].call, batch.work[p], y, &answers[p]);
  }
}

kernels::Rows CpuBackend::GatherRows(std::span<const Pending> parts) {
  if (parts.size() == 1) return {parts[0].call.payload.data(), dtype_, hidden_};
  size_t bytes = 0;
  for (const Pending& part : parts) bytes += part.call.payload.bytes();
  rows_.Reserve(bytes);
  std::byte* out = rows_.data();
  for (const Pending& part : parts) {
    std::memcpy(out, part.call.payload.data(), part.call.payload.bytes());
    out += part.call.payload.bytes();
  }
  return {rows_.data(), dtype_, hidden_};
}

void CpuBackend::WriteAnswer(const Call& call, const PartWork& work, const float* y,
                             Answer* answer) {
  if (answer->sums == 0 && answer->rows == 0) return;
  const uint32_t hidden = call.hidden;
  answer->payload = buffers_.Take(work.layout.bytes(hidden, dtype_));
  std::byte* out = answer->payload.mutable_data();
  const size_t rows_offset = work.layout.rows_offset(hidden, dtype_);
  const size_t sums_bytes = size_t{work.layout.sums} * row_bytes_;
  std::memset(out + sums_bytes, 0, rows_offset - sums_bytes);
  WriteSums(call, work, y, answer->sums, out);
  float* rows = reinterpret_cast<float*>(out + rows_offset);
  const size_t fp32_bytes = static_cast<size_t>(hidden_) * sizeof(float);
  for (const Segment& segment : call.segments) {
    if (segment.result != pb::ROWS) continue;
    for (uint32_t i = segment.begin; i < segment.begin + segment.count; ++i) {
      float* row = rows + int64_t{work.layout.slot[i]} * hidden_;
      if (work.pair[i] == kNoPair) {
        std::memset(row, 0, fp32_bytes);
      } else {
        std::memcpy(row, y + int64_t{work.pair[i]} * hidden_, fp32_bytes);
      }
    }
  }
}

void CpuBackend::WriteSums(const Call& call, const PartWork& work, const float* y, uint32_t sums,
                           std::byte* out) {
  const auto body = [&](int64_t begin, int64_t end) {
    for (auto s = static_cast<size_t>(begin); s < static_cast<size_t>(end); ++s) {
      const std::span entries =
          std::span(work.order).subspan(work.first[s], work.first[s + 1] - work.first[s]);
      WriteSum(call, work, entries, y, out + s * row_bytes_);
    }
  };
  constexpr int64_t kFloatsAPiece = 16384;
  if (sums > 0) {
    compute_.pool().ParallelFor(sums, std::max<int64_t>(1, kFloatsAPiece / hidden_), body);
  }
}

// One sum, a slice of the row at a time.
void CpuBackend::WriteSum(const Call& call, const PartWork& work, std::span<const uint32_t> entries,
                          const float* y, std::byte* out) {
  constexpr int64_t kSlice = 1024;
  float acc[kSlice];
  for (int64_t from = 0; from < hidden_; from += kSlice) {
    const int64_t n = std::min(kSlice, hidden_ - from);
    std::fill(acc, acc + n, 0.0f);
    for (const uint32_t i : entries) {
      kernels::AddScaled(acc, y + int64_t{work.pair[i]} * hidden_ + from, call.weights[i], n);
    }
    kernels::Convert(acc, n, dtype_, out + static_cast<size_t>(from) * SizeOf(dtype_));
  }
}

}  // namespace switchyard::worker
