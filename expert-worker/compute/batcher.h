// Computes several parts of one layer, of any number of routers, as one grouped computation, and
// writes each part's answer. What a part gets does not depend on the company it was computed in.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "expert-worker/compute/expert_ffn.h"
#include "expert-worker/store/holdings.h"
#include "expert-worker/store/tiers.h"
#include "services/expertwire/expert_link.h"
#include "services/expertwire/layout.h"

namespace switchyard::worker {

// A part that waits, and who asked.
struct Pending {
  expertwire::Call call;
  std::shared_ptr<expertwire::AnswerSink> sink;
  absl::Time arrived;
};

// An answer to `call` without rows: every segment has `status`.
expertwire::Answer AnswerAll(const expertwire::Call& call, expertwire::pb::SegmentStatus status,
                             std::string error);

// One thread at a time.
class Batcher {
 public:
  // What is told of an expert whose weights cannot be read.
  using OnLost = std::function<void(ExpertId, const absl::Status&)>;

  Batcher(const ModelSpec& spec, DType activations, Tiers& tiers, const Holdings& holdings,
          OnLost on_lost, const kernels::Compute& compute);

  // `parts` are of one layer, well formed, of this model's hidden size and dtype. Fills all of an
  // answer but its times and load. Returns the number of pairs computed.
  int64_t Run(std::span<const Pending> parts, std::vector<expertwire::Answer>* answers);

  size_t bytes_a_pair() const { return ffn_.bytes_a_pair() + row_bytes_; }

 private:
  // What is known of one part while it is computed.
  struct Work {
    expertwire::AnswerLayout layout;
    std::vector<uint32_t> pair;  // [row_index] -> pair, or kNoPair where it is not held
    std::vector<uint32_t> first,
        order;  // entries of row_index by sum: order[first[s], first[s + 1])
  };
  struct RunPiece {  // a segment, on its way into a run
    uint32_t expert;
    uint32_t part;
    uint32_t segment;
    const ExpertWeights* weights;
  };

  // Of a segment; null with its status and why in the answer.
  const ExpertWeights* Weights(const expertwire::Call& call, size_t segment,
                               expertwire::Answer* answer);
  void FindPieces(std::span<const Pending> parts, std::vector<expertwire::Answer>* answers);
  int64_t MakeRuns(std::span<const Pending> parts);
  kernels::Rows GatherRows(std::span<const Pending> parts);
  void WriteAnswer(const expertwire::Call& call, Work& work, const float* y,
                   expertwire::Answer* answer);
  void WriteSums(const expertwire::Call& call, Work& work, const float* y,
                 expertwire::Answer* answer, std::byte* out);
  void WriteSum(const expertwire::Call& call, const Work& work, std::span<const uint32_t> entries,
                const float* y, std::byte* out);

  const int64_t hidden_;
  const uint32_t experts_per_group_;
  const DType dtype_;
  const size_t row_bytes_;
  Tiers& tiers_;
  const Holdings& holdings_;
  const OnLost on_lost_;
  const kernels::Compute& compute_;
  ExpertFfn ffn_;
  expertwire::RowBufferPool buffers_;

  std::vector<Work> work_;  // [parts], reused
  std::vector<RunPiece> pieces_;
  std::vector<ExpertRun> runs_;
  std::vector<int32_t> gather_;
  std::vector<int32_t> base_;  // first row of each part among the rows of all
  AlignedBuffer rows_;         // of all parts, where there are several
};

}  // namespace switchyard::worker
