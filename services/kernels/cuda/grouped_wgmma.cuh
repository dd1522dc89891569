// y = x·Wᵀ of many experts on Hopper: grouped_matmul.cuh's product and tiles by wgmma, for bf16
// and, with rows of e4m3 too (W8A8, rows by quantize_rows.cuh), for e4m3.
//
// A block computes some outputs (128, or 256 where rows are e4m3 and many) of one run of up to
// kRows rows, and then the next such item that is its own: as many blocks are started as there are
// multiprocessors, one each. One warpgroup keeps stages of shared memory filled: tiles of weights
// by bulk copies as they lie, rows of x by cp.async from wherever they lie, chunk by chunk to their
// swizzled places, so that nobody has to gather them before (32 KiB a stage at 256 rows: 16 copies
// a thread in the time of 1,000 cycles of the tensor cores). It runs ahead over the end of an item,
// so that memory is read while the outputs of the item before are written. Two warpgroups
// multiply.
//
// Few rows are limited by bytes of weights: some 200 KiB are on their way to each multiprocessor,
// eight times what a memory of 3.4 TB/s with a latency of 1 us needs. Many are limited by the
// tensor cores: 256 rows by 128 outputs need 12 bytes a thousand FLOP from L2. Of e4m3, whose parts
// take registers beside the sums, it is 128 rows by 256 outputs, and half the bytes.
//
// Sameness: an output is one chain over the inputs ascending, in steps of wgmma's k (16 of bf16);
// of e4m3 in parts of 128 inputs that the tensor cores sum from zero (they add with few bits where
// inputs are e4m3), and a chain of fmaf over the parts. That is a class of its own, as the order
// within a step of wgmma and of mma is not told: who uses this kernel uses it for every number of
// rows. Inputs of e4m3 differ from what GPUs before sm_89 can do, whose tensor cores have no e4m3:
// there grouped_matmul.cuh widens weights and takes rows of bf16 (W8A16), a third class.
// What kRows is, where a run lies and how many blocks there are changes no bit (that wgmma computes
// a column alike whatever its n is for tests on a GPU to hold); no atomics.
#pragma once

#include "services/kernels/cuda/grouped_matmul.cuh"
#include "services/kernels/cuda/wgmma.cuh"

namespace switchyard::cuda {

struct GroupedArgs {
  // Of e4m3, x is bytes: rows of x_stride (a multiple of 16) with zeros behind the columns up to a
  // whole tile. Scales of weights are for 128 inputs or more. Runs as below.
  MatMulArgs product;
  int32_t runs = 0;
  const int32_t* run_count = nullptr;  // how many runs, if not null: in device memory, so that a
                                       // graph that is replayed may have others
  const float* x_scales = nullptr;     // e4m3: [row of x][x_scale_stride], one for 128 columns
  int64_t x_scale_stride = 0;
};

inline constexpr int kProducers = 128;
inline constexpr int kWarpgroups = 2;  // that multiply
inline constexpr int kWarpgroupThreads = 128;
inline constexpr int kGroupedThreads = kWarpgroups * kWarpgroupThreads + kProducers;
// With one block a multiprocessor the compiler may give 168 registers to each thread.
inline constexpr int kProducerRegisters = 72;
inline constexpr int kConsumerRegisters = 216;

// The rows to compute together of an expert of which `left` are left: runs of one expert may
// differ in it.
SY_CUDA_BOTH constexpr int RowsABlock(Format format, int left) {
  if (format == Format::kBf16 && left > 192) return 256;
  if (format == Format::kBf16 && left > 128) return 192;
  return left > 64 ? 128 : left > 32 ? 64 : left > 16 ? 32 : left > 8 ? 16 : 8;
}

template <Format kFormat, int kRows>
struct GroupedStage {
  static_assert(kFormat == Format::kBf16 || kFormat == Format::kE4M3);
  static constexpr bool kScaled = kFormat == Format::kE4M3;
  static constexpr int kTiles = kScaled && kRows == 128 ? 2 : 1;  // of each warpgroup
  static constexpr int kBlockTiles = kTiles * kWarpgroups;
  static constexpr int kRowsAt = kBlockTiles * kTileElementBytes;
  static constexpr int kBytes = kRowsAt + kRows * kTileRowBytes;
  // Beside the stages, which are aligned to 1024: scales of tiles, then those of rows.
  static constexpr int kTileScaleBytes = kTileRows * 4;
  static constexpr int kRowScalesAt = kBlockTiles * kTileScaleBytes;
  static constexpr int kScaleBytes = kScaled ? kRowScalesAt + kRows * 4 : 0;
  static constexpr int kMost = 224 * 1024 / (kBytes + kScaleBytes);
  static constexpr int kStages = kMost < 12 ? kMost : 12;
  static constexpr int kBarriersAt = kStages * (kBytes + kScaleBytes);
  static constexpr int kSharedBytes = kBarriersAt + 2 * kStages * 8;
  // Rows of a stage are known to be there when those of this many later ones were asked for: less
  // than all, so that who multiplies has one in hand while the one before is filled again.
  static constexpr int kLag = kStages - 2;
  static_assert(kStages >= 4 && kSharedBytes <= 227 * 1024);
};

// The stages in shared memory, and the next one of them for who goes round them.
template <Format kFormat, int kRows>
struct StageRing {
  using Stage = GroupedStage<kFormat, kRows>;
  unsigned char* shared;
  int slot = 0, parity = 0;

  __device__ __forceinline__ void Next() {
    if (++slot < Stage::kStages) return;
    slot = 0;
    parity ^= 1;
  }
  __device__ __forceinline__ int Before(int steps) const {
    return slot < steps ? slot - steps + Stage::kStages : slot - steps;
  }
  __device__ __forceinline__ unsigned char* Elements(int of) const {
    return shared + of * Stage::kBytes;
  }
  __device__ __forceinline__ unsigned char* Scales(int of) const {
    return shared + Stage::kStages * Stage::kBytes + of * Stage::kScaleBytes;
  }
  __device__ __forceinline__ uint64_t* Full(int of) const {
    return reinterpret_cast<uint64_t*>(shared + Stage::kBarriersAt) + of;
  }
  __device__ __forceinline__ uint64_t* Empty(int of) const { return Full(of) + Stage::kStages; }
};

// What a block has to compute: neighbouring items are of the same rows.
struct GroupedItem {
  RowRun run;
  int first_tile = 0;  // of the matrix's tiles along the outputs
};

template <Format kFormat, int kRows>
__device__ __forceinline__ int OutputGroups(const TileShape& shape) {
  constexpr int kTiles = GroupedStage<kFormat, kRows>::kBlockTiles;
  return (shape.row_tiles() + kTiles - 1) / kTiles;
}

template <Format kFormat, int kRows>
__device__ __forceinline__ int Items(const GroupedArgs& args) {
  const int runs = args.run_count == nullptr ? args.runs : *args.run_count;
  return runs * OutputGroups<kFormat, kRows>(args.product.shape);
}

template <Format kFormat, int kRows>
__device__ __forceinline__ GroupedItem ItemAt(const MatMulArgs& args, int item) {
  const int groups = OutputGroups<kFormat, kRows>(args.shape);
  return {args.runs[item / groups], item % groups * GroupedStage<kFormat, kRows>::kBlockTiles};
}

// One thread: weights of a step, and the stage's barrier gets to know how many bytes come.
template <Format kFormat, int kRows>
__device__ __forceinline__ void CopyTiles(const MatMulArgs& args, const GroupedItem& item, int step,
                                          const unsigned char* tiles,
                                          const StageRing<kFormat, kRows>& ring) {
  using Stage = GroupedStage<kFormat, kRows>;
  const auto tile_bytes = static_cast<int>(args.shape.tile_bytes());
  const int left = args.shape.row_tiles() - item.first_tile;
  const int count = left < Stage::kBlockTiles ? left : Stage::kBlockTiles;
  const size_t between =
      static_cast<size_t>(tile_bytes) * static_cast<size_t>(args.shape.column_tiles());
  uint64_t* const full = ring.Full(ring.slot);
  BarrierArriveAndExpect(full, count * tile_bytes);
  for (int i = 0; i < count; ++i) {
    const unsigned char* const tile = tiles + between * static_cast<size_t>(item.first_tile + i) +
                                      static_cast<size_t>(tile_bytes) * static_cast<size_t>(step);
    CopyBulk(ring.Elements(ring.slot) + i * kTileElementBytes, tile, kTileElementBytes, full);
    if (Stage::kScaled) {
      CopyBulk(ring.Scales(ring.slot) + i * Stage::kTileScaleBytes, tile + kTileElementBytes,
               tile_bytes - kTileElementBytes, full);
    }
  }
}

// The rows of x that a thread copies from: of chunk thread % 8, every 16th from thread / 8 on; and
// the one whose scale it copies.
template <Format kFormat, int kRows>
struct RowCopies {
  static constexpr int kEach = (kRows + 15) / 16;
  int32_t rows[kEach];
  int32_t scale_row = -1;

  __device__ __forceinline__ RowCopies(const MatMulArgs& args, const RowRun& run, int thread) {
    const auto of_x = [&](int row) {
      if (row >= run.count) return -1;  // zeros
      const int pair = run.first + row;
      return args.gather == nullptr ? pair : args.gather[pair];
    };
    SY_CUDA_UNROLL
    for (int i = 0; i < kEach; ++i) rows[i] = of_x(i * 16 + thread / 8);
    if (kFormat == Format::kE4M3) scale_row = of_x(thread);
  }

  __device__ __forceinline__ void Copy(const GroupedArgs& args, int step, int thread,
                                       const StageRing<kFormat, kRows>& ring) const {
    using Stage = GroupedStage<kFormat, kRows>;
    constexpr int kElement = BitsOf(kFormat) / 8;
    const MatMulArgs& product = args.product;
    const int chunk = thread % 8, column = step * TileColumns(kFormat) + chunk * 16 / kElement;
    const bool inside = Stage::kScaled || column < product.shape.columns;
    const auto* const x = reinterpret_cast<const unsigned char*>(product.x);
    unsigned char* const to = ring.Elements(ring.slot) + Stage::kRowsAt;
    SY_CUDA_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int row = i * 16 + thread / 8;
      if (row >= kRows) continue;
      const bool there = inside && rows[i] >= 0;
      const unsigned char* const from =
          there ? x + (rows[i] * product.x_stride + column) * kElement : x;
      CopyAsync(to + row * kTileRowBytes + SwizzledChunk(row, chunk) * 16, from, there ? 16 : 0);
    }
    if (!Stage::kScaled || thread >= kRows) return;
    const float* const from =
        scale_row >= 0 ? args.x_scales + scale_row * args.x_scale_stride + step : args.x_scales;
    CopyAsync4(ring.Scales(ring.slot) + Stage::kRowScalesAt + thread * 4, from, scale_row >= 0);
  }
};

template <Format kFormat, int kRows>
__device__ __forceinline__ void Produce(const GroupedArgs& args, StageRing<kFormat, kRows> ring,
                                        int thread) {
  using Stage = GroupedStage<kFormat, kRows>;
  const MatMulArgs& product = args.product;
  const int items = Items<kFormat, kRows>(args);
  const int steps = product.shape.column_tiles();
  const auto full = [&](int stages_ago) {
    PublishShared();
    BarrierArrive(ring.Full(ring.Before(stages_ago)));
  };
  int open = 0;  // stages whose rows were asked for and not yet told of
  for (int i = static_cast<int>(blockIdx.x); i < items; i += static_cast<int>(gridDim.x)) {
    const GroupedItem item = ItemAt<kFormat, kRows>(product, i);
    const unsigned char* const tiles = product.matrices[item.run.expert].tiles;
    const RowCopies<kFormat, kRows> rows(product, item.run, thread);
    for (int step = 0; step < steps; ++step) {
      BarrierWait(ring.Empty(ring.slot), ring.parity ^ 1);
      if (thread == 0) CopyTiles<kFormat, kRows>(product, item, step, tiles, ring);
      rows.Copy(args, step, thread, ring);
      CommitCopies();
      if (open == Stage::kLag) {
        WaitCopies<Stage::kLag>();
        full(Stage::kLag);
      } else {
        ++open;
      }
      ring.Next();
    }
  }
  WaitCopies<0>();
  for (; open > 0; --open) full(open);
}

// A warp says that it no longer reads a stage.
template <Format kFormat, int kRows>
__device__ __forceinline__ void Release(const StageRing<kFormat, kRows>& ring, int slot) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) BarrierArrive(ring.Empty(slot));
}

template <Format kFormat, int kRows>
__device__ __forceinline__ void MultiplyTile(float (&d)[kRows / 2], const unsigned char* tile,
                                             const unsigned char* rows, bool from_zero) {
  const uint64_t a = SwizzledRows(tile), b = SwizzledRows(rows);
  SY_CUDA_UNROLL
  for (int k = 0; k < 4; ++k) {
    const bool add = k > 0 || !from_zero;
    if constexpr (kFormat == Format::kE4M3) {
      WgmmaE4M3<kRows>(d, a + kStepOfK * k, b + kStepOfK * k, add);
    } else {
      WgmmaBf16<kRows>(d, a + kStepOfK * k, b + kStepOfK * k, add);
    }
  }
}

// An item's sums of bf16: the tensor cores go from stage to stage, and one is released when they
// are in the next.
template <int kRows>
__device__ __forceinline__ void SumBf16(int steps, int warpgroup,
                                        StageRing<Format::kBf16, kRows>& ring,
                                        float (&sum)[1][kRows / 2]) {
  using Stage = GroupedStage<Format::kBf16, kRows>;
  for (int step = 0; step < steps; ++step) {
    BarrierWait(ring.Full(ring.slot), ring.parity);
    const unsigned char* const stage = ring.Elements(ring.slot);
    WgmmaFence();
    MultiplyTile<Format::kBf16, kRows>(sum[0], stage + warpgroup * kTileElementBytes,
                                       stage + Stage::kRowsAt, step == 0);
    WgmmaCommit();
    WgmmaWait<1>();
    if (step > 0) Release(ring, ring.Before(1));
    ring.Next();
  }
  WgmmaWait<0>();
  Settle(sum[0]);
  Release(ring, ring.Before(1));
}

// Of e4m3: part by part of 128 inputs, a part while the other warpgroup's are summed.
template <int kRows, int kTiles>
__device__ __forceinline__ void SumE4M3(const TileShape& shape, int steps, int warpgroup,
                                        StageRing<Format::kE4M3, kRows>& ring,
                                        float (&sum)[kTiles][kRows / 2]) {
  using Stage = GroupedStage<Format::kE4M3, kRows>;
  const int lane = static_cast<int>(threadIdx.x % 32), t = lane % 4;
  const int low = static_cast<int>(threadIdx.x / 32 % 4) * 16 + lane / 4;  // and low + 8
  SY_CUDA_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    SY_CUDA_UNROLL
    for (int i = 0; i < kRows / 2; ++i) sum[tile][i] = 0;
  }
  const int scales_a_row = shape.group_rows == 1 ? 1 : 8;
  for (int step = 0; step < steps; ++step) {
    BarrierWait(ring.Full(ring.slot), ring.parity);
    const unsigned char* const stage = ring.Elements(ring.slot);
    const unsigned char* const scales = ring.Scales(ring.slot);
    SY_CUDA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int number = warpgroup * kTiles + tile;
      float part[kRows / 2];
      WgmmaFence();
      MultiplyTile<Format::kE4M3, kRows>(part, stage + number * kTileElementBytes,
                                         stage + Stage::kRowsAt, true);
      WgmmaCommit();
      const auto* const of_tile =
          reinterpret_cast<const float*>(scales + number * Stage::kTileScaleBytes);
      const float s0 = of_tile[low / scales_a_row], s1 = of_tile[(low + 8) / scales_a_row];
      WgmmaWait<0>();
      Settle(part);
      SY_CUDA_UNROLL
      for (int j = 0; j < kRows / 8; ++j) {
        const auto* const of_rows =
            reinterpret_cast<const float*>(scales + Stage::kRowScalesAt) + j * 8 + t * 2;
        const float r0 = of_rows[0], r1 = of_rows[1];
        sum[tile][j * 4] = fmaf(part[j * 4], s0 * r0, sum[tile][j * 4]);
        sum[tile][j * 4 + 1] = fmaf(part[j * 4 + 1], s0 * r1, sum[tile][j * 4 + 1]);
        sum[tile][j * 4 + 2] = fmaf(part[j * 4 + 2], s1 * r0, sum[tile][j * 4 + 2]);
        sum[tile][j * 4 + 3] = fmaf(part[j * 4 + 3], s1 * r1, sum[tile][j * 4 + 3]);
      }
    }
    Release(ring, ring.slot);
    ring.Next();
  }
}

template <int kRows, Epilogue kEpilogue>
__device__ __forceinline__ void StoreTile(const MatMulArgs& args, const RowRun& run, int tile,
                                          const float (&sum)[kRows / 2]) {
  if (tile >= args.shape.row_tiles()) return;
  const int lane = static_cast<int>(threadIdx.x % 32), t = lane % 4;
  const int low = tile * kTileRows + static_cast<int>(threadIdx.x / 32 % 4) * 16 + lane / 4;
  const float* const bias = args.matrices[run.expert].bias;
  const float b0 = bias == nullptr ? 0.0f : bias[low];
  const float b1 = bias == nullptr ? 0.0f : bias[low + 8];
  SY_CUDA_UNROLL
  for (int j = 0; j < kRows / 8; ++j) {
    SY_CUDA_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int row = j * 8 + t * 2 + i;
      if (row >= run.count) continue;
      StoreTwo<kEpilogue>(args, run.first + row, low, sum[j * 4 + i] + b0, sum[j * 4 + i + 2] + b1);
    }
  }
}

template <Format kFormat, int kRows, Epilogue kEpilogue>
__device__ __forceinline__ void Consume(const GroupedArgs& args, StageRing<kFormat, kRows> ring) {
  constexpr int kTiles = GroupedStage<kFormat, kRows>::kTiles;
  const MatMulArgs& product = args.product;
  const int items = Items<kFormat, kRows>(args);
  const int steps = product.shape.column_tiles();
  const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroupThreads;
  for (int i = static_cast<int>(blockIdx.x); i < items; i += static_cast<int>(gridDim.x)) {
    const GroupedItem item = ItemAt<kFormat, kRows>(product, i);
    float sum[kTiles][kRows / 2];
    if constexpr (kFormat == Format::kE4M3) {
      SumE4M3<kRows, kTiles>(product.shape, steps, warpgroup, ring, sum);
    } else {
      SumBf16<kRows>(steps, warpgroup, ring, sum);
    }
    SY_CUDA_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      StoreTile<kRows, kEpilogue>(product, item.run, item.first_tile + warpgroup * kTiles + tile,
                                  sum[tile]);
    }
  }
}

// grid: as many blocks as multiprocessors, or as items where those are fewer. No run has more than
// kRows rows; one without rows is no item's.
template <Format kFormat, int kRows, Epilogue kEpilogue>
__global__ void __launch_bounds__(kGroupedThreads, 1) GroupedWgmma(const GroupedArgs args) {
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
  // Never started where there is no wgmma.
#else
  using Stage = GroupedStage<kFormat, kRows>;
  SY_CUDA_SHARED(shared);
  const StageRing<kFormat, kRows> ring{shared};
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < Stage::kStages; ++slot) {
      BarrierInit(ring.Full(slot), kProducers + 1);
      BarrierInit(ring.Empty(slot), kWarpgroups * kWarpgroupThreads / 32);
    }
    BarriersAreInit();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroups * kWarpgroupThreads) {
    MoreRegisters<kConsumerRegisters>();
    Consume<kFormat, kRows, kEpilogue>(args, ring);
  } else {
    FewerRegisters<kProducerRegisters>();
    Produce<kFormat, kRows>(args, ring,
                            static_cast<int>(threadIdx.x) - kWarpgroups * kWarpgroupThreads);
  }
#endif
}

}  // namespace switchyard::cuda
