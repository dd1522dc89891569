// y = x·Wᵀ of many experts in one grid: block (o, r) computes the outputs of one tile (64) for one
// run of rows of one expert. Weights are the left operand of the products, so that few rows cost
// few: rows are padded to 8.
//
// Sameness: an output is one chain over the inputs ascending in slabs of 32, whatever the number of
// rows, their place in the run, or what else is in the grid. No atomics.
#pragma once

#include "services/kernels/cuda/formats.cuh"
#include "services/kernels/cuda/ptx.cuh"
#include "services/kernels/cuda/tiles.h"

namespace switchyard::cuda {

// Rows of one expert, at most as many as the kernel takes in a block.
struct RowRun {
  int32_t expert = 0;  // of the array of matrices
  int32_t first = 0;   // pair; its row of y
  int32_t count = 0;
};

struct Matrix {
  const unsigned char* tiles = nullptr;  // as TileShape says
  const float* bias = nullptr;           // [rows], padded to 64; null: none
};

struct ActivationArgs {
  bool clamped = false;  // (up + 1)·gate·sigmoid(alpha·gate), both clamped; else silu(gate)·up
  float limit = 0, alpha = 0;
};

struct MatMulArgs {
  const Matrix* matrices = nullptr;  // of the experts
  const RowRun* runs = nullptr;      // [grid.y]
  TileShape shape;                   // of all matrices
  const uint16_t* x = nullptr;       // bf16
  int64_t x_stride = 0;              // elements, a multiple of 8
  const int32_t* gather = nullptr;   // row of x of a pair; null: the pair itself
  void* y = nullptr;                 // float32, or bf16 of the activation
  int64_t y_stride = 0;              // elements
  // From a run's pair to its next, of GroupedMatMul only: the pairs of a head, one a row, lie
  // apart.
  int32_t pair_step = 1;
  ActivationArgs activation;
};

enum class Epilogue { kStore, kActivate };

inline constexpr int kMatMulThreads = 128;

template <Format kFormat, int kRows>
struct MatMulStage {
  static constexpr int kColumns = TileColumns(kFormat);
  static constexpr int kRowBytes = kRows * kColumns * 2;
  // The most that scales of a tile take: a group of 32, with zero points.
  static constexpr int kScaleBytes =
      kFormat == Format::kBf16
          ? 0
          : kColumns / kSlab * kTileRows * 4 * (kFormat == Format::kI4 ? 2 : 1);
  static constexpr int kBytes = kTileElementBytes + kScaleBytes + kRowBytes;
  static constexpr int kStages = kBytes * 4 <= 96 * 1024 ? 4 : kBytes * 3 <= 96 * 1024 ? 3 : 2;
  static constexpr int kSharedBytes = kStages * kBytes;
};

__device__ __forceinline__ float Silu(float x) { return x / (1.0f + expf(-x)); }

__device__ __forceinline__ float Activated(float gate, float up, const ActivationArgs& args) {
  if (!args.clamped) return Silu(gate) * up;
  gate = fminf(gate, args.limit);
  up = fminf(fmaxf(up, -args.limit), args.limit);
  return (up + 1.0f) * (gate / (1.0f + expf(-args.alpha * gate)));
}

// One step of the pipeline: a tile of weights as it lies, and the rows' inputs of its columns, as
// pieces of 64 columns [rows][128 bytes] that are swizzled alike.
template <Format kFormat, int kRows>
__device__ __forceinline__ void LoadStage(const MatMulArgs& args, const RowRun& run,
                                          const unsigned char* tile, int column_tile,
                                          unsigned char* stage) {
  using Stage = MatMulStage<kFormat, kRows>;
  const int thread = static_cast<int>(threadIdx.x);
  const int chunks = static_cast<int>(args.shape.tile_bytes() / 16);
  for (int c = thread; c < chunks; c += kMatMulThreads)
    CopyAsync(stage + c * 16, tile + c * 16, 16);
  unsigned char* const rows = stage + kTileElementBytes + Stage::kScaleBytes;
  constexpr int kChunks = Stage::kColumns / 8;
  for (int c = thread; c < kRows * kChunks; c += kMatMulThreads) {
    const int row = c / kChunks, chunk = c % kChunks;
    const int column = column_tile * Stage::kColumns + chunk * 8;
    const bool inside = row < run.count && column < args.shape.columns;
    const uint16_t* from = args.x;
    if (inside) {
      const int pair = run.first + row * args.pair_step;
      from += (args.gather == nullptr ? pair : args.gather[pair]) * args.x_stride + column;
    }
    const int at = (chunk / 8 * kRows + row) * kTileRowBytes + SwizzledChunk(row, chunk % 8) * 16;
    CopyAsync(rows + at, from, inside ? 16 : 0);
  }
}

template <Format kFormat, int kRows>
__device__ __forceinline__ void MultiplyStage(const TileShape& shape, const unsigned char* stage,
                                              float (&sum)[kRows / 8][4]) {
  using Stage = MatMulStage<kFormat, kRows>;
  constexpr bool kScaled = kFormat != Format::kBf16;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int t = lane % 4, spread = SpreadRow(lane / 4);
  const int low = static_cast<int>(threadIdx.x / 32) * 16 + spread;  // and low + 8: of the tile
  const unsigned char* const rows = stage + kTileElementBytes + Stage::kScaleBytes;
  const int slabs_a_group = kScaled ? Stage::kColumns / kSlab / shape.groups() : 1;
  float part[kRows / 8][4];
  SY_CUDA_UNROLL
  for (int slab = 0; slab < Stage::kColumns / kSlab; ++slab) {
    const int group = slab / slabs_a_group;
    if (kScaled && slab % slabs_a_group == 0) {
      SY_CUDA_UNROLL
      for (int j = 0; j < kRows / 8; ++j) part[j][0] = part[j][1] = part[j][2] = part[j][3] = 0;
    }
    const uint4 a = LoadWeights<kFormat>(shape, stage, low, slab, t, group);
    const uint4 b = LoadWeights<kFormat>(shape, stage, low + 8, slab, t, group);
    SY_CUDA_UNROLL
    for (int j = 0; j < kRows / 8; ++j) {
      const int row = j * 8 + spread;
      const uint4 x =
          *reinterpret_cast<const uint4*>(rows + (slab / 2 * kRows + row) * kTileRowBytes +
                                          SwizzledChunk(row, slab % 2 * 4 + t) * 16);
      float(&d)[4] = kScaled ? part[j] : sum[j];
      Mma(d, a.x, b.x, a.y, b.y, x.x, x.y);
      Mma(d, a.z, b.z, a.w, b.w, x.z, x.w);
    }
    if (kScaled && slab % slabs_a_group == slabs_a_group - 1) {
      const float s0 = LoadScale(shape, stage, low, group);
      const float s1 = LoadScale(shape, stage, low + 8, group);
      SY_CUDA_UNROLL
      for (int j = 0; j < kRows / 8; ++j) {
        sum[j][0] = fmaf(part[j][0], s0, sum[j][0]);
        sum[j][1] = fmaf(part[j][1], s0, sum[j][1]);
        sum[j][2] = fmaf(part[j][2], s1, sum[j][2]);
        sum[j][3] = fmaf(part[j][3], s1, sum[j][3]);
      }
    }
  }
}

// Outputs `low` and low + 8 of a row: of gate and up, or stored as they are.
template <Epilogue kEpilogue>
__device__ __forceinline__ void StoreTwo(const MatMulArgs& args, int row, int low, float first,
                                         float second) {
  const int64_t at = row * args.y_stride;
  if (kEpilogue == Epilogue::kActivate) {
    if (low + 8 >= args.shape.rows) return;
    static_cast<uint16_t*>(args.y)[at + low / 16 * 8 + low % 8] =
        static_cast<uint16_t>(Pack2(Activated(first, second, args.activation), 0.0f));
  } else {
    float* const y = static_cast<float*>(args.y) + at;
    if (low < args.shape.rows) y[low] = first;
    if (low + 8 < args.shape.rows) y[low + 8] = second;
  }
}

template <int kRows, Epilogue kEpilogue>
__device__ __forceinline__ void Finish(const MatMulArgs& args, const RowRun& run, const float* bias,
                                       const float (&sum)[kRows / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x % 32), t = lane % 4;
  const int low = static_cast<int>(blockIdx.x) * kTileRows +
                  static_cast<int>(threadIdx.x / 32) * 16 + SpreadRow(lane / 4);
  const float b0 = bias == nullptr ? 0.0f : bias[low];
  const float b1 = bias == nullptr ? 0.0f : bias[low + 8];
  SY_CUDA_UNROLL
  for (int j = 0; j < kRows / 8; ++j) {
    SY_CUDA_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int row = j * 8 + SpreadRow(t * 2 + i);
      if (row >= run.count) continue;
      StoreTwo<kEpilogue>(args, run.first + row * args.pair_step, low, sum[j][i] + b0,
                          sum[j][i + 2] + b1);
    }
  }
}

// grid: (row_tiles of the shape, runs). No run has more than kRows rows.
template <Format kFormat, int kRows, Epilogue kEpilogue>
__global__ void __launch_bounds__(kMatMulThreads) GroupedMatMul(const MatMulArgs args) {
  using Stage = MatMulStage<kFormat, kRows>;
  SY_CUDA_SHARED(shared);
  const RowRun run = args.runs[blockIdx.y];
  if (run.count == 0) return;  // of a list that was made on the device
  const Matrix matrix = args.matrices[run.expert];
  const int steps = args.shape.column_tiles();
  const size_t tile_bytes = args.shape.tile_bytes();
  const unsigned char* const tiles =
      matrix.tiles + tile_bytes * static_cast<size_t>(steps) * blockIdx.x;
  const auto load = [&](int step) {
    if (step < steps) {
      LoadStage<kFormat, kRows>(args, run, tiles + tile_bytes * static_cast<size_t>(step), step,
                                shared + step % Stage::kStages * Stage::kBytes);
    }
    CommitCopies();
  };
  float sum[kRows / 8][4] = {};
  for (int step = 0; step < Stage::kStages - 1; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    WaitCopies<Stage::kStages - 2>();
    __syncthreads();  // the step's bytes are there, and nobody reads the step before any more
    load(step + Stage::kStages - 1);
    MultiplyStage<kFormat, kRows>(args.shape, shared + step % Stage::kStages * Stage::kBytes, sum);
  }
  Finish<kRows, kEpilogue>(args, run, matrix.bias, sum);
}

}  // namespace switchyard::cuda
