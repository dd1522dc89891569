// The instructions of Hopper that our kernels use, one function each, as ptx.cuh has those of every
// GPU: for sources that nvcc compiles for sm_90a, or another compiler for tests/support/simt.
//
// Source of layouts: PTX ISA 9.0, "Asynchronous Warpgroup Level Matrix Instructions", "mbarrier"
// and "cp.async.bulk".
#pragma once

#include "services/kernels/cuda/ptx.cuh"

namespace switchyard::cuda {

// ---- barriers in shared memory, of 8 bytes, aligned to 8 ----
// A phase ends when so many have arrived and all bytes that were expected have come.
__device__ void BarrierInit(uint64_t* barrier, int arrivals);
__device__ void BarriersAreInit();  // by who did, before a __syncthreads
__device__ void BarrierArrive(uint64_t* barrier);
__device__ void BarrierArriveAndExpect(uint64_t* barrier, int bytes);
// Until the phase of this parity has ended; that before the first has parity 1.
__device__ void BarrierWait(uint64_t* barrier, int parity);

// Copies from global to shared memory in the background; the barrier gets the bytes. All are
// multiples of 16.
__device__ void CopyBulk(void* shared, const void* from, int bytes, uint64_t* barrier);
// As CopyAsync, with 4 bytes or, where not `inside`, zeros.
__device__ void CopyAsync4(void* shared, const void* from, bool inside);
// What this thread wrote into shared memory (also by CopyAsync, waited for) becomes visible to
// wgmma and bulk copies: of whoever knows of it by a barrier after this.
__device__ void PublishShared();

// Registers of each thread of the warpgroup that all are in here.
template <int kRegisters>
__device__ __forceinline__ void FewerRegisters();
template <int kRegisters>
__device__ __forceinline__ void MoreRegisters();

// ---- products of matrices by four warps, the first of which is a multiple of four ----
// Rows of 128 bytes in shared memory, chunks swizzled as SwizzledChunk says, from a place that
// is aligned to 1024; steps of 32 bytes along the rows are added to it as kStepOfK.
__device__ uint64_t SwizzledRows(const void* shared);
inline constexpr uint64_t kStepOfK = 2;

// D += A·Bᵀ, or D = A·Bᵀ, for A [64, 16] and B [kN, 16] of bf16, or [64, 32] and [kN, 32] of e4m3,
// in the background. With g = lane / 4, t = lane % 4 and w the warp of the four a lane holds
//   d[4 j + i]: D[16 w + g + i / 2 * 8][8 j + 2 t + i % 2]
template <int kN>
__device__ __forceinline__ void WgmmaBf16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add);
template <int kN>
__device__ __forceinline__ void WgmmaE4M3(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add);
__device__ void WgmmaFence();   // before the first, and after registers of D were touched
__device__ void WgmmaCommit();  // those since the last one are a group
// Until at most `kLeft` groups are on their way.
template <int kLeft>
__device__ __forceinline__ void WgmmaWait();
// After a wait: no use of `d` is moved before it.
template <int kCount>
__device__ __forceinline__ void Settle(float (&d)[kCount]);

// Two floats as e4m3, rounded to nearest even, what is too large as the largest; `lo` in the low
// byte. NaN stays.
__device__ uint32_t PackE4M3(float lo, float hi);

}  // namespace switchyard::cuda

#ifdef __CUDACC__
#include "services/kernels/cuda/wgmma_device.cuh"
#else
#include <wgmma_host.cuh>  // beside the cuda_runtime.h that was found
#endif
