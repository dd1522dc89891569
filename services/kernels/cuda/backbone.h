// A model's backbone on a device (backbone_abi.h): its buffers, and the order of its launches on
// one stream.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <vector>

#include "services/kernels/cuda/attention_launch.cuh"
#include "services/kernels/cuda/backbone_abi.h"
#include "services/kernels/cuda/context.h"
#include "services/kernels/cuda/expert_products.h"
#include "services/kernels/cuda/grouped_matmul_launch.cuh"

namespace switchyard::cuda {
inline constexpr int kPlanes = 3;  // of bf16, which make a float32: see backbone.cuh
}

struct SyCudaBackbone {
  SyCudaBackbone(SyCudaContext& context, const SyCudaBackboneSpec& spec, const SyCudaLayer* layers);
  ~SyCudaBackbone();

  int Prepare(SyCudaError* error);
  int Begin(const SyCudaStep& step, SyCudaError* error);
  int Attention(int layer, SyCudaError* error);
  int Dense(int layer, SyCudaError* error);
  int Route(int layer, SyCudaRouted* routed, SyCudaError* error);
  int WaitRouted(SyCudaError* error);
  int Ready(int32_t* done, SyCudaError* error);
  int Shared(int layer, SyCudaError* error);
  int Combine(int layer, SyCudaError* error);
  int Moe(int layer, SyCudaRouted* chosen, SyCudaError* error);
  int Head(const float** logits, SyCudaError* error);
  int Wait(SyCudaError* error);
  int CopyBlock(int32_t from, int32_t to, SyCudaError* error);
  // Whether there is such a layer, with experts (1), without (0) or either (-1).
  int CheckCall(int layer, int moe, SyCudaError* error) const;
  // Of a backbone without layers, whose inner width would be `inner`.
  size_t StepBytes(int64_t inner, int32_t rows, int32_t logits);
  void LogitsTo(float* logits) { logits_to_ = logits; }
  float* residual() const { return s_.residual; }
  cudaStream_t stream() const { return stream_; }  // for measurements

 private:
  using Matrix = switchyard::cuda::Matrix;
  using RowRun = switchyard::cuda::RowRun;
  using QueryRun = switchyard::cuda::QueryRun;

  // The maps of a layer among the device's array of matrices.
  enum Map { kIn, kQB, kOut, kGate, kGateUp, kDown, kMaps };
  // Pieces of rows that products take, and where they lie on the device.
  struct Runs {
    RowRun* host = nullptr;
    const RowRun* device = nullptr;
    int count = 0, tile = 8, step = 1;
  };
  // What a step brings: pinned, and alike on the device.
  struct Input {
    int32_t *tokens = nullptr, *positions = nullptr, *logit_rows = nullptr, *tables = nullptr;
    int64_t* table_of_row = nullptr;  // [groups][rows]
    QueryRun* queries = nullptr;      // [groups][query_runs]
    RowRun *rows = nullptr, *planes = nullptr, *heads = nullptr, *logits = nullptr;
    size_t bytes = 0;
  };
  // Of the device, for `rows` rows.
  struct Scratch {
    float *residual = nullptr, *normed = nullptr, *in = nullptr, *q = nullptr, *query = nullptr,
          *value = nullptr, *delta = nullptr, *sums = nullptr, *plane_logits = nullptr,
          *gate_logits = nullptr, *weights = nullptr, *logits = nullptr, *partial = nullptr;
    uint16_t* x = nullptr;  // [planes][rows, hidden]
    uint16_t *q_a = nullptr, *heads_in = nullptr, *attended = nullptr, *values = nullptr,
             *inner = nullptr;
    int32_t *ids = nullptr, *gather = nullptr, *place = nullptr, *run_count = nullptr;
    RowRun* runs = nullptr;
    float2* stats = nullptr;
  };

  int Check(SyCudaError* error) const;
  int CheckLayer(int l, SyCudaError* error) const;
  int CheckStep(const SyCudaStep& step, SyCudaError* error) const;
  void LayInput(unsigned char* base, Input& in) const;
  // For `partials` sums of values in attention.
  size_t LayScratch(unsigned char* base, int64_t rows, int64_t logits, int64_t partials,
                    Scratch& s) const;
  int64_t MostPartials() const;
  void FillRuns();
  void FillSequences(const SyCudaStep& step);
  int UploadMatrices(SyCudaError* error);
  int PrepareExperts(SyCudaError* error);
  bool has_experts() const { return spec_.experts.hidden > 0; }
  // Rows of a run of pairs, and how many runs there may be.
  int32_t RunRows(int64_t rows) const;
  int64_t ExpertRuns(int64_t rows) const;
  cudaError_t AddSums(int layer);
  cudaError_t Multiply(const SyCudaWeights& w, const Matrix* matrices, const Runs& runs,
                       const uint16_t* x, int64_t x_stride, void* y, int64_t y_stride,
                       bool activate = false);
  cudaError_t Multiply(int layer, Map map, const uint16_t* x, int64_t x_stride, float* y);
  cudaError_t FeedForward(int layer, float* out);
  cudaError_t QueriesOfLatents(int layer);
  cudaError_t QueriesOfHeads(int layer);
  cudaError_t Attend(int layer);
  cudaError_t Choose(int layer);
  int32_t Slots(const switchyard::cuda::AttentionArgs& args) const;
  const Matrix* MatrixOf(int layer, int map) const;

  SyCudaContext& context_;
  const SyCudaBackboneSpec spec_;
  const std::vector<SyCudaLayer> layers_;
  const switchyard::cuda::AttentionVectors vectors_;
  const int64_t q_width_, in_width_, kv_at_;  // of q, of `in`, and where in it keys begin
  const int64_t value_width_;                 // of what the output projection takes
  int64_t inner_width_ = 0;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t on_host_ = nullptr;  // what route or head brings there
  switchyard::cuda::DeviceBuffer matrices_{SY_CUDA_DEVICE};

  // Of the experts that are here; null: none. Matrices: [layers][gate and up, down][experts].
  std::unique_ptr<switchyard::cuda::ExpertProducts> products_;
  switchyard::cuda::DeviceBuffer expert_matrices_{SY_CUDA_DEVICE};

  // Of the step.
  int32_t rows_ = 0, sequences_ = 0, logits_ = 0, most_rows_ = 0, last_position_ = 0;
  int32_t attention_rows_ = 16, query_runs_ = 0, slots_ = 1;
  int64_t table_entries_ = 0;
  Input host_, device_;
  Scratch s_;
  float* logits_to_ = nullptr;
  Runs row_runs_, plane_runs_, head_runs_, logit_runs_;
  switchyard::cuda::DeviceBuffer pinned_{SY_CUDA_PINNED}, in_{SY_CUDA_DEVICE},
      scratch_{SY_CUDA_DEVICE}, routed_out_{SY_CUDA_PINNED}, chosen_out_{SY_CUDA_PINNED},
      logits_out_{SY_CUDA_PINNED};
};
