#include "expert-worker/compute/batcher.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "services/base/status.h"

namespace switchyard::worker {
namespace {

namespace pb = expertwire::pb;
using expertwire::Answer;
using expertwire::Call;
using expertwire::Segment;

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

Batcher::Batcher(const ModelSpec& spec, Tiers& tiers, const Holdings& holdings, OnLost on_lost,
                 Backend& backend)
    : experts_per_group_(static_cast<uint32_t>(spec.experts_per_group())),
      tiers_(tiers),
      holdings_(holdings),
      on_lost_(std::move(on_lost)),
      backend_(backend) {}

void Batcher::Start(std::span<const Pending> parts, std::vector<Answer>* answers) {
  parts_ = parts;
  answers_ = answers;
  answers->clear();
  if (work_.size() < parts.size()) work_.resize(parts.size());
  tiers_.Begin(Tiers::Clock::now());
  FindPieces(parts, answers);
  pairs_ = MakeRuns(parts);
  if (pairs_ > 0) {
    for (size_t p = 0; p < parts.size(); ++p) LayOut(parts[p].call, &work_[p], &(*answers)[p]);
    backend_.Start({.layer = parts[0].call.layer,
                    .parts = parts,
                    .work = std::span(work_).first(parts.size()),
                    .base = base_,
                    .gather = gather_,
                    .runs = runs_},
                   *answers);
  }
  tiers_.End();  // a device holds itself what it computes with
}

absl::StatusOr<int64_t> Batcher::Finish() {
  const absl::Status status = pairs_ > 0 ? backend_.Finish() : absl::OkStatus();
  if (status.ok()) return pairs_;
  for (size_t p = 0; p < parts_.size(); ++p) {
    (*answers_)[p] = AnswerAll(parts_[p].call, pb::NOT_HERE, std::string(status.message()));
  }
  return status;
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
      runs_.push_back({static_cast<int32_t>(piece.expert), piece.weights, first, 0});
    }
    runs_.back().count += segment.count;
    for (uint32_t i = segment.begin; i < segment.begin + segment.count; ++i) {
      work_[piece.part].pair[i] = static_cast<uint32_t>(gather_.size());
      gather_.push_back(base_[piece.part] + static_cast<int32_t>(call.row_index[i]));
    }
  }
  return static_cast<int64_t>(gather_.size());
}

// Where an answer's rows stand; nowhere, if no segment is computed.
void Batcher::LayOut(const Call& call, PartWork* work, Answer* answer) {
  const bool any =
      std::find(answer->status.begin(), answer->status.end(), pb::OK) != answer->status.end();
  if (!any) return;
  LayOutAnswer(call.segments, call.row_index, experts_per_group_, &work->layout);
  answer->sums = work->layout.sums;
  answer->rows = work->layout.rows;
  OrderSums(call, answer->sums, work);
}

void Batcher::OrderSums(const Call& call, uint32_t sums, PartWork* work) {
  if (sums == 0) return;
  // Calls f with each entry of a sum, by expert ascending, as the segments do.
  const auto each = [&](auto f) {
    for (const Segment& s : call.segments) {
      if (s.result != pb::GROUP_SUMS) continue;
      for (uint32_t i = s.begin; i < s.begin + s.count; ++i) f(i, work->layout.slot[i]);
    }
  };
  held_.assign(sums, 1);
  each([&](uint32_t i, uint32_t sum) { held_[sum] &= work->pair[i] != kNoPair ? 1u : 0u; });
  work->first.assign(sums + 1, 0);
  each([&](uint32_t, uint32_t sum) { work->first[sum + 1] += held_[sum]; });
  for (uint32_t s = 0; s < sums; ++s) work->first[s + 1] += work->first[s];
  work->order.resize(work->first[sums]);
  each([&](uint32_t i, uint32_t sum) {
    if (held_[sum] > 0) work->order[work->first[sum]++] = i;
  });
  // The fill moved each start to its end, which is the next one's start.
  std::copy_backward(work->first.begin(), work->first.end() - 1, work->first.end());
  work->first[0] = 0;
}

}  // namespace switchyard::worker
