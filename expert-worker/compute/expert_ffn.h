// The FFNs of several experts of one layer over many rows, as three parallel jobs: gate and up, the
// activation, down. Each expert's weights are read once. Scratch is kept from call to call; what is
// between gate and down is of as many experts at a time as fit a tile of 16 MiB.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "expert-worker/store/expert_store.h"
#include "services/kernels/kernels.h"
#include "services/model/spec.h"
#include "services/tensor/buffer.h"

namespace switchyard::worker {

// Pairs [first, first + count) belong to one expert.
struct ExpertRun {
  int32_t expert = 0;
  const ExpertWeights* weights = nullptr;
  int64_t first = 0;
  int64_t count = 0;
};

// One thread at a time.
class ExpertFfn {
 public:
  ExpertFfn(const ModelSpec& spec, DType activations, const kernels::Compute& compute);

  // y[p] = FFN(x[gather[p]]) for every pair p of the runs, which tile [0, pairs). Returns
  // [pairs, hidden] in fp32, valid until the next call.
  const float* Run(kernels::Rows x, const int32_t* gather, std::span<const ExpertRun> runs,
                   int64_t pairs);

  // Scratch that a pair takes beside the tile.
  size_t bytes_a_pair() const;

 private:
  static constexpr size_t kTileBytes = size_t{16} << 20;  // of gate_up_; one expert is taken whole

  // Of runs that are computed together.
  void GateUp(kernels::Rows x, const int32_t* gather, std::span<const ExpertRun> runs);
  void Activate(int64_t pairs);
  void Down(std::span<const ExpertRun> runs);

  const ExpertSpec spec_;
  const int64_t hidden_;
  const DType dtype_;
  const kernels::Compute& compute_;
  AlignedBuffer gate_up_;  // [pairs of a tile, 2 * intermediate] fp32
  AlignedBuffer inner_;    // [pairs of a tile, intermediate] of dtype_
  AlignedBuffer y_;        // [pairs, hidden] fp32
  std::vector<kernels::MatMulTask> tasks_;
};

}  // namespace switchyard::worker
