/* What libswitchyard_cuda.so exports: one function, which gives a table of others, and one like it
 * for a model's backbone (backbone_abi.h). Plain C, so that
 * a plugin built by another compiler, or a newer one, is refused by its version and nothing else.
 *
 * Results: SY_CUDA_OK or what went wrong, with a sentence in `error` (never null). Nothing throws.
 * Sizes are bytes unless said otherwise. Thread-safety: functions of one SyCudaFfn by one thread at
 * a time; all others by any. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SY_CUDA_ABI_VERSION 2

enum SyCudaStatus {
  SY_CUDA_OK = 0,
  SY_CUDA_NO_DRIVER = 1,  /* or one that is too old for the plugin */
  SY_CUDA_NO_DEVICE = 2,  /* none, or none of that number */
  SY_CUDA_BAD_DEVICE = 3, /* its architecture has no code here */
  SY_CUDA_NO_MEMORY = 4,
  SY_CUDA_INVALID = 5, /* arguments; the caller's error */
  SY_CUDA_LOST = 6,    /* the device: nothing works on it from now on */
};

typedef struct SyCudaError {
  char text[512];
} SyCudaError;

typedef struct SyCudaDevice {
  char name[256];
  char arithmetic[32]; /* names the bits of its results: "cuda-sm80-mma" */
  int32_t index, major, minor, multiprocessors;
  uint64_t memory_bytes, free_bytes;
  int32_t driver_version, runtime_version; /* 12040: 12.4 */
} SyCudaDevice;

/* Numbers that a matrix is made of; those of tiles.h. */
enum SyCudaFormat {
  SY_CUDA_BF16 = 0,
  SY_CUDA_E4M3 = 1,
  SY_CUDA_I8 = 2,
  SY_CUDA_I4 = 3,
  SY_CUDA_E2M1 = 4,
};

/* A matrix [rows, columns] of outputs by inputs as tiles: see tiles.h, TileShape. */
typedef struct SyCudaMatrix {
  int32_t format, rows, columns;
  int32_t group, group_rows; /* that share a scale; group 0: no scales */
  int32_t zeros;             /* 1: each group of a row has a zero point */
} SyCudaMatrix;

/* The feed-forward of a layer's experts. An expert is one block of memory: the tiles of gate and
 * up (rows interleaved by eight, GateUpRow), the tiles of down and, with bias, float32 of both
 * (padded as rows of tiles are), each part at a multiple of 1024 bytes. */
typedef struct SyCudaFfnSpec {
  int32_t hidden, intermediate;
  SyCudaMatrix gate_up, down;
  int32_t bias;
  int32_t clamped; /* (up + 1)·gate·sigmoid(alpha·gate) within ±limit; 0: silu(gate)·up */
  float limit, alpha;
} SyCudaFfnSpec;

typedef struct SyCudaContext SyCudaContext; /* a device, with its streams */
typedef struct SyCudaFfn SyCudaFfn;         /* what computes frames, one at a time */

/* How much a frame has, for its buffers. */
typedef struct SyCudaFrameSize {
  int32_t rows;       /* of x */
  int32_t pairs;      /* (row, expert) */
  int32_t sums;       /* outputs that are sums of pairs, in bf16; zeros without entries */
  int32_t entries;    /* pairs in them */
  int32_t copies;     /* outputs that are a pair's result, in float32 */
  uint64_t out_bytes; /* of all outputs */
} SyCudaFrameSize;

/* Pinned memory that the caller fills before the first ffn_compute. */
typedef struct SyCudaFrame {
  uint16_t* x;         /* [rows, hidden] bf16, for rows that do not lie in pinned memory */
  int32_t* gather;     /* [pairs]: row of x; an expert's pairs stand together */
  int32_t* sum_first;  /* [sums + 1]: entries of sum s are [sum_first[s], sum_first[s + 1]) */
  int32_t* entry_pair; /* [entries] */
  float* entry_weight; /* [entries] */
  uint64_t* sum_at;    /* [sums]: byte of the outputs, a multiple of 4; [hidden] of bf16 */
  int32_t* copy_pair;  /* [copies]; -1: zeros */
  uint64_t* copy_at;   /* [copies]: byte of the outputs, a multiple of 8; [hidden] of float32 */
} SyCudaFrame;

/* Pairs [first, first + count) are of the expert whose block lies at `expert` on the device. */
typedef struct SyCudaRun {
  const void* expert;
  int32_t first, count;
} SyCudaRun;

/* Bytes [at, at + bytes) of the outputs, and where on the host they go. */
typedef struct SyCudaOut {
  void* to; /* pinned: the copy is the device's own */
  uint64_t at, bytes;
} SyCudaOut;

enum SyCudaMemory { SY_CUDA_DEVICE = 0, SY_CUDA_PINNED = 1 };

typedef struct SyCudaApi {
  int32_t version; /* SY_CUDA_ABI_VERSION */

  int (*count)(int32_t* devices, SyCudaError* error);
  int (*open)(int32_t device, SyCudaContext** context, SyCudaError* error);
  void (*close)(SyCudaContext* context);
  int (*describe)(SyCudaContext* context, SyCudaDevice* out, SyCudaError* error);

  /* 1024-byte aligned. */
  int (*allocate)(SyCudaContext* context, int32_t memory, uint64_t bytes, void** out,
                  SyCudaError* error);
  void (*release)(SyCudaContext* context, int32_t memory, void* block);
  /* Copies pinned to device memory on a stream of the copies' own, and waits for it. */
  int (*upload)(SyCudaContext* context, void* device, const void* pinned, uint64_t bytes,
                SyCudaError* error);

  /* Bytes of an expert's block; 0: the spec is not supported, and why. */
  uint64_t (*expert_bytes)(const SyCudaFfnSpec* spec, SyCudaError* error);
  int (*ffn_create)(SyCudaContext* context, const SyCudaFfnSpec* spec, SyCudaFfn** ffn,
                    SyCudaError* error);
  void (*ffn_destroy)(SyCudaFfn* ffn);
  /* Device memory that a pair takes while a frame is computed. */
  uint64_t (*ffn_pair_bytes)(const SyCudaFfn* ffn);

  /* A frame: begin, then rows, then compute for all of its experts (at once, or some at a time,
   * waiting between so that memory may change hands), then finish, then wait. All but wait return
   * at once; what pointers lead to stays until then. */
  int (*ffn_begin)(SyCudaFfn* ffn, const SyCudaFrameSize* size, SyCudaFrame* frame,
                   SyCudaError* error);
  /* Rows [first, first + count) of x, from pinned memory: the frame's own or any other. */
  int (*ffn_rows)(SyCudaFfn* ffn, int32_t first, int32_t count, const void* rows,
                  SyCudaError* error);
  int (*ffn_compute)(SyCudaFfn* ffn, const SyCudaRun* runs, int32_t count, SyCudaError* error);
  /* Sums and copies, to the host. */
  int (*ffn_finish)(SyCudaFfn* ffn, const SyCudaOut* outs, int32_t count, SyCudaError* error);
  /* Whether everything that was begun is done, or fails. */
  int (*ffn_poll)(SyCudaFfn* ffn, int32_t* done, SyCudaError* error);
  /* Until it is. */
  int (*ffn_wait)(SyCudaFfn* ffn, SyCudaError* error);
} SyCudaApi;

/* Null if the plugin has another version. */
const SyCudaApi* SyCudaPlugin(int32_t version);
typedef const SyCudaApi* (*SyCudaPluginFunction)(int32_t version);

#ifdef __cplusplus
}
#endif
