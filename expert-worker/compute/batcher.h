// Computes several parts of one layer, of any number of routers, as one grouped computation, and
// writes each part's answer. What a part gets does not depend on the company it was computed in.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "expert-worker/compute/backend.h"
#include "expert-worker/store/holdings.h"
#include "expert-worker/store/tiers.h"
#include "services/expertwire/expert_link.h"
#include "services/expertwire/layout.h"

namespace switchyard::worker {

// An answer to `call` without rows: every segment has `status`.
expertwire::Answer AnswerAll(const expertwire::Call& call, expertwire::pb::SegmentStatus status,
                             std::string error);

// One thread at a time.
class Batcher {
 public:
  // What is told of an expert whose weights cannot be read.
  using OnLost = std::function<void(ExpertId, const absl::Status&)>;

  Batcher(const ModelSpec& spec, Tiers& tiers, const Holdings& holdings, OnLost on_lost,
          Backend& backend);

  // Begins with `parts`, which are of one layer, well formed, of this model's hidden size and
  // dtype, and stay until Finish, as `answers` do.
  void Start(std::span<const Pending> parts, std::vector<expertwire::Answer>* answers);
  bool Done() { return pairs_ == 0 || backend_.Done(); }
  // All of an answer but its times and load is there afterwards. Returns the number of pairs
  // computed, or why the backend computed none: no segment of the answers is OK then.
  absl::StatusOr<int64_t> Finish();

 private:
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
  void LayOut(const expertwire::Call& call, PartWork* work, expertwire::Answer* answer);
  void OrderSums(const expertwire::Call& call, uint32_t sums, PartWork* work);

  const uint32_t experts_per_group_;
  Tiers& tiers_;
  const Holdings& holdings_;
  const OnLost on_lost_;
  Backend& backend_;
  expertwire::RowBufferPool buffers_;

  std::span<const Pending> parts_;
  std::vector<expertwire::Answer>* answers_ = nullptr;
  int64_t pairs_ = 0;
  std::vector<PartWork> work_;  // [parts], reused
  std::vector<RunPiece> pieces_;
  std::vector<ExpertRun> runs_;
  std::vector<int32_t> gather_;
  std::vector<int32_t> base_;   // first row of each part among the rows of all
  std::vector<uint32_t> held_;  // scratch of OrderSums
};

}  // namespace switchyard::worker
