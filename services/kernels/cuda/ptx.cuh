// The instructions that our kernels use beside CUDA's own C++, one function each. Compiled by
// another compiler than nvcc they are what the instruction does, over the fibers of
// tests/support/simt: the only place that knows of both.
//
// Source of layouts: PTX ISA 9.0, "Matrix Fragments for mma.m16n8k16", "ldmatrix" and "cp.async".
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace switchyard::cuda {

// D += A·B of one warp, for bf16 A [16, 16] and B [16, 8], float32 D [16, 8]. With g = lane / 4 and
// t = lane % 4 a lane holds
//   a: A[g][2t..], A[g+8][2t..], A[g][2t+8..], A[g+8][2t+8..]   two elements each, the lower first
//   b: B[2t..][g], B[2t+8..][g]
//   d: D[g][2t], D[g][2t+1], D[g+8][2t], D[g+8][2t+1]
// All lanes of the warp take part.
__device__ void Mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                    uint32_t b1);

// Copies 16 bytes from global to shared memory in the background; of these the first `bytes`
// (0 to 16) come from `from`, the others are zeros. Both aligned to 16.
__device__ void CopyAsync(void* shared, const void* from, int bytes);
__device__ void CommitCopies();  // those since the last one are a group
// Until at most `kLeft` groups of this thread's are on their way.
template <int kLeft>
__device__ __forceinline__ void WaitCopies();

// Four matrices [8, 8] of bf16 from shared memory: lane l gives where row l % 8 of matrix l / 8
// begins (16 bytes, aligned), and receives of each matrix M[g][2t], M[g][2t+1]; transposed
// M[2t][g], M[2t+1][g]. All lanes of the warp take part.
__device__ void LoadMatrices(uint32_t (&out)[4], const void* row);
__device__ void LoadTransposed(uint32_t (&out)[4], const void* row);

// Bytes of `lo` (0 to 3) and `hi` (4 to 7), four of them by the nibbles of `pick`.
__device__ uint32_t Permute(uint32_t lo, uint32_t hi, uint32_t pick);

// Two bf16 numbers each: a - b, a · b, rounded to nearest even.
__device__ uint32_t Sub2(uint32_t a, uint32_t b);
__device__ uint32_t Mul2(uint32_t a, uint32_t b);
// Two floats as bf16, rounded to nearest even; `lo` in the low half.
__device__ uint32_t Pack2(float lo, float hi);
__device__ float FromBf16(uint32_t low_half);

}  // namespace switchyard::cuda

#ifdef __CUDACC__
#include "services/kernels/cuda/ptx_device.cuh"
#else
#include <ptx_host.cuh>  // beside the cuda_runtime.h that was found
#endif
