#include "expert-worker/compute/batcher.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>

#include "services/base/status.h"

namespace switchyard::worker {
namespace {

namespace pb = expertwire::pb;
using expertwire::Answer;
using expertwire::Call;
using expertwire::Segment;

constexpr uint32_t kNoPair = ~uint32_t{0};

Answer Identify(const Call& call) {
  Answer answer;
  answer.call_id = call.call_id;
  answer.attempt = call.attempt;
  answer.part = call.part;
  answer.last = call.last;
  answer.hidden = call.hidden;
  answer.dtype = call.dtype;
  answer.call_wire_bytes = call.wire_bytes;
  return answer;
}

}  // namespace

Answer AnswerAll(const Call& call, pb::SegmentStatus status, std::string error) {
  Answer answer = Identify(call);
  answer.status.assign(call.segments.size(), status);
  answer.error = std::move(error);
  return answer;
}

Batcher::Batcher(const ModelSpec& spec, DType activations, Tiers& tiers, const Holdings& holdings,
                 OnLost on_lost, const kernels::Compute& compute)
    : hidden_(spec.hidden),
      experts_per_group_(static_cast<uint32_t>(spec.experts_per_group())),
      dtype_(activations),
      row_bytes_(static_cast<size_t>(spec.hidden) * SizeOf(activations)),
      tiers_(tiers),
      holdings_(holdings),
      on_lost_(std::move(on_lost)),
      compute_(compute),
      ffn_(spec, activations, compute) {}

int64_t Batcher::Run(std::span<const Pending> parts, std::vector<Answer>* answers) {
  answers->clear();
  if (work_.size() < parts.size()) work_.resize(parts.size());
  tiers_.Begin(Tiers::Clock::now());
  FindPieces(parts, answers);
  const int64_t pairs = MakeRuns(parts);
  const float* y = pairs == 0 ? nullptr : ffn_.Run(GatherRows(parts), gather_.data(), runs_, pairs);
  tiers_.End();
  for (size_t p = 0; p < parts.size() && pairs > 0; ++p) {
    WriteAnswer(parts[p].call, work_[p], y, &(*answers)[p]);
  }
  return pairs;
}

const ExpertWeights* Batcher::Weights(const Call& call, size_t segment, Answer* answer) {
  const Segment& asked = call.segments[segment];
  const ExpertId id{call.layer, static_cast<int32_t>(asked.expert)};
  std::string why;
  if (asked.version == 0) {
    const absl::StatusOr<const ExpertWeights*> weights = tiers_.Use(id.layer, id.expert);
    if (weights.ok() && *weights != nullptr) return *weights;
    if (!weights.ok()) {
      why = std::string(weights.status().message());
      on_lost_(id, weights.status());
    }
  }
  const bool coming = asked.version == 0 && why.empty() && holdings_.Coming(id.layer, id.expert);
  answer->status[segment] = coming ? pb::LOADING : pb::NOT_HERE;
  if (answer->error.empty()) {
    answer->error =
        fmt::format("expert {} (version {}) of layer {} is {}", id.expert, asked.version, id.layer,
                    coming        ? "being loaded here"
                    : why.empty() ? "not held here"
                                  : "lost: " + why);
  }
  return nullptr;
}

void Batcher::FindPieces(std::span<const Pending> parts, std::vector<Answer>* answers) {
  pieces_.clear();
  for (size_t p = 0; p < parts.size(); ++p) {
    const Call& call = parts[p].call;
    Answer answer = Identify(call);
    answer.status = buffers_.List<pb::SegmentStatus>();
    answer.status.assign(call.segments.size(), pb::OK);
    work_[p].pair.assign(call.row_index.size(), kNoPair);
    for (size_t s = 0; s < call.segments.size(); ++s) {
      const Segment& segment = call.segments[s];
      const ExpertWeights* weights = Weights(call, s, &answer);
      if (weights == nullptr) continue;
      pieces_.push_back(
          {segment.expert, static_cast<uint32_t>(p), static_cast<uint32_t>(s), weights});
    }
    answers->push_back(std::move(answer));
  }
  if (parts.size() > 1) {  // of one part they ascend already
    std::sort(pieces_.begin(), pieces_.end(), [](const RunPiece& a, const RunPiece& b) {
      return std::tie(a.expert, a.part, a.segment) < std::tie(b.expert, b.part, b.segment);
    });
  }
}

int64_t Batcher::MakeRuns(std::span<const Pending> parts) {
  base_.clear();
  int32_t rows = 0;
  for (const Pending& part : parts) {
    base_.push_back(rows);
    rows += static_cast<int32_t>(part.call.rows);
  }
  runs_.clear();
  gather_.clear();
  for (const RunPiece& piece : pieces_) {
    const Call& call = parts[piece.part].call;
    const Segment& segment = call.segments[piece.segment];
    const int64_t first = static_cast<int64_t>(gather_.size());
    if (runs_.empty() || runs_.back().weights != piece.weights) {
      runs_.push_back({piece.weights, first, 0});
    }
    runs_.back().count += segment.count;
    for (uint32_t i = segment.begin; i < segment.begin + segment.count; ++i) {
      work_[piece.part].pair[i] = static_cast<uint32_t>(gather_.size());
      gather_.push_back(base_[piece.part] + static_cast<int32_t>(call.row_index[i]));
    }
  }
  return static_cast<int64_t>(gather_.size());
}

kernels::Rows Batcher::GatherRows(std::span<const Pending> parts) {
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

void Batcher::WriteAnswer(const Call& call, Work& work, const float* y, Answer* answer) {
  const bool any =
      std::find(answer->status.begin(), answer->status.end(), pb::OK) != answer->status.end();
  if (!any) return;
  LayOutAnswer(call.segments, call.row_index, experts_per_group_, &work.layout);
  const uint32_t hidden = call.hidden;
  answer->sums = work.layout.sums;
  answer->rows = work.layout.rows;
  answer->payload = buffers_.Take(work.layout.bytes(hidden, dtype_));
  std::byte* out = answer->payload.mutable_data();
  const size_t rows_offset = work.layout.rows_offset(hidden, dtype_);
  const size_t sums_bytes = size_t{work.layout.sums} * row_bytes_;
  std::memset(out + sums_bytes, 0, rows_offset - sums_bytes);
  WriteSums(call, work, y, answer, out);
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

void Batcher::WriteSums(const Call& call, Work& work, const float* y, Answer* answer,
                        std::byte* out) {
  const uint32_t sums = answer->sums;
  if (sums == 0) return;
  // Entries of each sum, by expert ascending, as the segments do.
  work.first.assign(sums + 1, 0);
  for (const Segment& s : call.segments) {
    if (s.result != pb::GROUP_SUMS) continue;
    for (uint32_t i = s.begin; i < s.begin + s.count; ++i) ++work.first[work.layout.slot[i] + 1];
  }
  for (uint32_t s = 0; s < sums; ++s) work.first[s + 1] += work.first[s];
  work.order.resize(work.first[sums]);
  for (const Segment& s : call.segments) {
    if (s.result != pb::GROUP_SUMS) continue;
    for (uint32_t i = s.begin; i < s.begin + s.count; ++i) {
      work.order[work.first[work.layout.slot[i]]++] = i;
    }
  }
  // The fill moved each start to its end, which is the next one's start.
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const uint32_t from = s == 0 ? 0 : work.first[s - 1];
      const std::span entries = std::span(work.order).subspan(from, work.first[s] - from);
      WriteSum(call, work, entries, y, out + static_cast<size_t>(s) * row_bytes_);
    }
  };
  constexpr int64_t kFloatsAPiece = 16384;
  compute_.pool().ParallelFor(sums, std::max<int64_t>(1, kFloatsAPiece / hidden_), body);
}

// One sum, of zeros where an expert of it is not held; a slice of the row at a time.
void Batcher::WriteSum(const Call& call, const Work& work, std::span<const uint32_t> entries,
                       const float* y, std::byte* out) {
  const bool whole = std::none_of(entries.begin(), entries.end(),
                                  [&](uint32_t i) { return work.pair[i] == kNoPair; });
  constexpr int64_t kSlice = 1024;
  float acc[kSlice];
  for (int64_t from = 0; from < hidden_; from += kSlice) {
    const int64_t n = std::min(kSlice, hidden_ - from);
    std::fill(acc, acc + n, 0.0f);
    for (const uint32_t i : whole ? entries : std::span<const uint32_t>()) {
      kernels::AddScaled(acc, y + int64_t{work.pair[i]} * hidden_ + from, call.weights[i], n);
    }
    kernels::Convert(acc, n, dtype_, out + static_cast<size_t>(from) * SizeOf(dtype_));
  }
}

}  // namespace switchyard::worker
