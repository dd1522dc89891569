// Rows of bf16 as e4m3, with a float32 scale for every 128 columns of a row: its largest magnitude
// becomes 448, the largest of e4m3. What GroupedWgmma takes for e4m3; limited by the bytes that it
// reads.
//
// A group of a row is 16 lanes', 16 bytes each; nothing is shared between groups, so that a row's
// bits depend on the row alone. A NaN or an infinity makes NaN of the numbers that would depend on
// it, in its own row.
#pragma once

#include "services/kernels/cuda/ptx.cuh"
#include "services/kernels/cuda/wgmma.cuh"

namespace switchyard::cuda {

inline constexpr int kQuantizeGroup = 128;
inline constexpr int kQuantizeThreads = 256;
inline constexpr int kQuantizeLanes = 16;  // a group
inline constexpr int kQuantizeGroupsABlock = kQuantizeThreads / kQuantizeLanes;

struct QuantizeArgs {
  const uint16_t* x = nullptr;
  int64_t x_stride = 0;           // elements, a multiple of 8
  int32_t rows = 0, columns = 0;  // columns: a multiple of 8
  uint8_t* out = nullptr;         // zeros behind the columns up to a whole group
  int64_t out_stride = 0;         // bytes, a multiple of 16
  float* scales = nullptr;        // [rows][scale_stride]
  int64_t scale_stride = 0;
};

// grid: (groups of all rows) / kQuantizeGroupsABlock, rounded up.
__global__ void __launch_bounds__(kQuantizeThreads) QuantizeRows(const QuantizeArgs args) {
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
  // Never started where there is no wgmma.
#else
  const auto thread = static_cast<int>(threadIdx.x);
  const int groups = (args.columns + kQuantizeGroup - 1) / kQuantizeGroup;
  const int64_t at =
      static_cast<int64_t>(blockIdx.x) * kQuantizeGroupsABlock + thread / kQuantizeLanes;
  const int64_t row = at / groups;
  const int group = static_cast<int>(at % groups);
  const int column = group * kQuantizeGroup + thread % kQuantizeLanes * 8;
  uint4 raw = {0, 0, 0, 0};
  if (row < args.rows && column < args.columns) {
    raw = *reinterpret_cast<const uint4*>(args.x + row * args.x_stride + column);
  }
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  float values[8], most = 0;
  SY_CUDA_UNROLL
  for (int i = 0; i < 8; ++i) {
    values[i] = FromBf16(i % 2 == 0 ? words[i / 2] & 0xffffu : words[i / 2] >> 16);
    most = fmaxf(most, fabsf(values[i]));
  }
  SY_CUDA_UNROLL
  for (int lanes = kQuantizeLanes / 2; lanes > 0; lanes /= 2) {
    most = fmaxf(most, __shfl_xor_sync(~0u, most, lanes));
  }
  if (row >= args.rows) return;
  const float scale = most > 0 ? most / 448.0f : 1.0f;
  uint32_t pairs[4];
  SY_CUDA_UNROLL
  for (int i = 0; i < 4; ++i) {
    pairs[i] = PackE4M3(values[i * 2] / scale, values[i * 2 + 1] / scale);
  }
  *reinterpret_cast<uint2*>(args.out + row * args.out_stride + column) = {
      pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16};
  if (thread % kQuantizeLanes == 0) args.scales[row * args.scale_stride + group] = scale;
#endif
}

}  // namespace switchyard::cuda
