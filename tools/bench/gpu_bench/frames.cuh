// Frames of the plugin's expert feed-forward over experts with random weights, as workers compute
// them, with rows that are spread evenly.
#pragma once

#include <memory>

#include "services/kernels/cuda/expert_block.h"
#include "services/kernels/cuda/expert_ffn.h"
#include "tools/bench/gpu_bench/bench.cuh"

namespace switchyard::gpu_bench {

// A layer's experts on the device. `format`: "bf16" or "e4m3", with scales of 128 x 128.
class Experts {
 public:
  Experts(Gpu& gpu, const std::string& format, int hidden, int intermediate, int count);
  ~Experts();
  Experts(const Experts&) = delete;
  Experts& operator=(const Experts&) = delete;

  static SyCudaFfnSpec SpecOf(const std::string& format, int hidden, int intermediate);

  const SyCudaFfnSpec& spec() const { return spec_; }
  SyCudaFfn* ffn() const { return ffn_; }
  int count() const { return static_cast<int>(blocks_.size()); }
  const void* block(int expert) const { return blocks_[static_cast<size_t>(expert)]; }
  double bytes() const { return bytes_; }  // of an expert's weights with their scales

 private:
  Gpu& gpu_;
  SyCudaFfnSpec spec_;
  SyCudaFfn* ffn_ = nullptr;
  double bytes_ = 0;
  std::vector<void*> blocks_;
};

// `rows` rows, each of `top_k` of the first `experts` experts; answers are weighted sums in bf16.
class Frame {
 public:
  Frame(Gpu& gpu, Experts& experts, int rows, int count, int top_k, uint64_t seed);

  // The frame's calls, which return at once.
  void Begin();  // lists; rows are the caller's, who writes them to x()
  void SendRows();
  void Compute();
  void Finish();
  void Wait();

  int pairs() const { return static_cast<int>(gather_.size()); }
  int touched() const { return static_cast<int>(runs_.size()); }  // experts that have rows
  const std::vector<int>& pairs_of_expert() const { return pairs_of_expert_; }
  size_t x_bytes() const { return size_t(rows_) * size_t(experts_.spec().hidden) * 2; }
  size_t out_bytes() const { return x_bytes(); }
  uint16_t* x() const { return frame_.x; }  // pinned, after Begin
  void* out() const { return out_; }        // pinned
  // What must be read and written at least, and computed.
  double bytes() const;
  double flop() const;

 private:
  Gpu& gpu_;
  Experts& experts_;
  const int rows_, top_k_;
  std::vector<int32_t> gather_, sum_first_, entry_pair_;
  std::vector<int> pairs_of_expert_;
  std::vector<SyCudaRun> runs_;
  SyCudaFrame frame_ = {};
  void* out_ = nullptr;
};

// The kernels of a frame (after one that ran as a whole), as a graph.
std::unique_ptr<Kernels> KernelsOf(Experts& experts, Frame& frame);

}  // namespace switchyard::gpu_bench
