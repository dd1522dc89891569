/* The second table of libswitchyard_cuda.so: what a model computes beside its routed experts, on
 * the device and on one stream. Plain C, beside abi.h, whose contexts, matrices and errors it has;
 * it has a version of its own.
 *
 * A step is a ragged batch through all layers. Its calls are made in the order of the layers and
 * return at once; what they start runs in that order:
 *
 *   begin                                        tokens, positions, block tables; embedding
 *     attention(l), dense(l)                     a layer without experts
 *     attention(l), route(l), wait_routed,       a layer with them: its rows and choice are on the
 *       shared(l), combine(l)                    host, shared experts run while they are out
 *     moe(l)                                     a layer whose experts are on the device, too:
 *                                                all of it, and nothing passes the host
 *   head, wait                                   logits on the host
 *
 * moe gives the bits of route to combine where the sums are what router/dispatch/combine.h makes of
 * the same experts' frames on this device.
 *
 * Numbers: residual, norms, gate, softmax and logits are float32; inputs of products and the rows
 * that go out are bf16; the cache is bf16. The gate's logits are made of unrounded inputs. A row's
 * bits depend on its own sequence alone: not on the others of the step, nor on how a sequence is
 * cut into steps.
 *
 * Layers are named from 0; one that is not there, or that has no experts where they are wanted, is
 * SY_CUDA_INVALID.
 *
 * Several backbones may share weights and a cache, each with a stream and buffers of its own: two
 * micro-batches of a step. What one stored is there for another once its step was waited for.
 *
 * Thread-safety: functions of one SyCudaBackbone by one thread at a time. Pointers are to device
 * memory where it says so; such memory is aligned to 16 bytes and outlives the backbone. */
#pragma once

#include "services/kernels/cuda/abi.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SY_CUDA_BACKBONE_ABI_VERSION 3

/* Weights of a linear map on the device. */
typedef struct SyCudaWeights {
  SyCudaMatrix shape;
  const void* tiles; /* aligned to 16 bytes, shape's bytes (tiles.h); null: there is no such map */
  const float* bias; /* [rows], padded to 64 with zeros; null: none */
} SyCudaWeights;

/* Of the same order as their namesakes of the model's description. */
enum SyCudaQkNorm { SY_CUDA_QK_NONE = 0, SY_CUDA_QK_HEADS = 1, SY_CUDA_QK_PROJECTION = 2 };
enum SyCudaGateScore { SY_CUDA_SIGMOID = 0, SY_CUDA_SOFTMAX = 1, SY_CUDA_SOFTMAX_AFTER_TOP_K = 2 };
enum SyCudaGroupScore { SY_CUDA_GROUP_NONE = 0, SY_CUDA_GROUP_MAX = 1, SY_CUDA_GROUP_TOP_2 = 2 };

typedef struct SyCudaGateSpec {
  int32_t experts, top_k; /* experts 0: no layer has any */
  int32_t score, group_score, groups, topk_groups;
  int32_t normalise;
  float normalise_eps, scale;
} SyCudaGateSpec;

typedef struct SyCudaBackboneSpec {
  int32_t hidden, vocab, layers;
  float norm_eps;
  int32_t mla; /* 1: latents, absorbed; 0: heads that share keys and values */
  int32_t heads;
  int32_t kv_heads, head_dim, qk_norm; /* without mla */
  float clip_qkv;                      /* 0: none */
  int32_t q_lora, latent, nope, value; /* with mla; q_lora 0: one projection */
  float lora_norm_eps;
  int32_t rope_dim, rope_interleaved;
  const float* rope; /* device, [positions][cos of rope_dim / 2, sin of rope_dim / 2] */
  int32_t positions; /* of rope */
  float softmax_scale;
  SyCudaGateSpec gate;
  int32_t kv_groups;           /* groups of layers, each with its own block tables */
  int32_t block_tokens;        /* a power of two */
  uint64_t block_stride_bytes; /* from block to block of a layer */
  const uint16_t* embedding;   /* device, [vocab, hidden] bf16 */
  const float* final_norm;     /* device, [hidden] */
  SyCudaWeights lm_head;
  SyCudaFfnSpec experts;     /* hidden 0: no layer's are on this device */
  int32_t experts_per_group; /* whose results are added before they are rounded */
} SyCudaBackboneSpec;

typedef struct SyCudaLayer {
  int32_t window;   /* 0: none */
  int32_t kv_group; /* whose block tables it reads */
  void* cache; /* device: the layer's place in block 0. A token's record is bf16: [latent, rope],
                  or [keys of all heads, values of all heads] */
  const float *input_norm, *post_norm; /* device, [hidden] */
  /* Rows of q, k and v; with mla of q_a (or q) and then of kv_a, latent before rope. */
  SyCudaWeights in;
  /* Device: [head_dim] or [the projection's rows]; with mla [q_lora] and [latent]. null: none. */
  const float *q_norm, *k_norm;
  SyCudaWeights q_b; /* with q_lora */
  /* With mla: a head's matrix [latent, nope] and [value, latent]; heads one after the other, each
   * of shape's bytes. No biases. */
  SyCudaWeights key_up, value_up;
  SyCudaWeights out;
  const float* sinks; /* device, [heads]; null: none */
  int32_t moe;
  SyCudaWeights gate;           /* of a layer with experts; bf16 */
  const float* correction_bias; /* device, [experts]; null: none */
  /* The dense feed-forward, or the shared experts (tiles null: none): rows of gate and up
   * interleaved as tiles.h says. */
  SyCudaWeights gate_up, down;
  /* Host, [gate.experts]: where each expert's block lies on the device (abi.h); null: elsewhere. */
  const void* const* experts;
} SyCudaLayer;

/* Memory of the caller, read during begin. */
typedef struct SyCudaStep {
  int32_t rows, sequences, logits;
  const int32_t* tokens;        /* [rows] */
  const int32_t* positions;     /* [rows] */
  const int32_t* sequence_rows; /* [sequences]: rows of each, together, at ascending positions */
  const int32_t* const* tables; /* [kv_groups][sequences]: blocks up to that of the last position */
  const int32_t* logit_rows;    /* [logits] */
} SyCudaStep;

/* Pinned memory of the backbone, valid until the next route. */
typedef struct SyCudaRouted {
  const uint16_t* x;    /* [rows, hidden] bf16 */
  const int32_t* ids;   /* [rows, top_k], ascending */
  const float* weights; /* [rows, top_k] */
  float* sums;          /* [rows, hidden]: the caller's, before combine */
} SyCudaRouted;

typedef struct SyCudaBackbone SyCudaBackbone;

typedef struct SyCudaBackboneApi {
  int32_t version; /* SY_CUDA_BACKBONE_ABI_VERSION */

  /* SY_CUDA_INVALID names what is not supported. `layers` [spec->layers] is copied. */
  int (*create)(SyCudaContext* context, const SyCudaBackboneSpec* spec, const SyCudaLayer* layers,
                SyCudaBackbone** backbone, SyCudaError* error);
  void (*destroy)(SyCudaBackbone* backbone);
  /* Device memory that steps of up to so many rows, logits among them, take in one backbone beside
   * weights and cache. Of `spec` its sizes are looked at; `inner` is the widest inner width of its
   * dense layers and shared experts. */
  uint64_t (*step_bytes)(SyCudaContext* context, const SyCudaBackboneSpec* spec, int32_t inner,
                         int32_t rows, int32_t logits);

  /* Waits for the step before. SY_CUDA_INVALID where a token, a position or a row is out of range,
   * or the step has more rows than the kernels' grids take. */
  int (*begin)(SyCudaBackbone* backbone, const SyCudaStep* step, SyCudaError* error);
  /* Stores the rows' keys and values, then residual += attention(norm(residual)). */
  int (*attention)(SyCudaBackbone* backbone, int32_t layer, SyCudaError* error);
  /* residual += feed-forward(norm(residual)). */
  int (*dense)(SyCudaBackbone* backbone, int32_t layer, SyCudaError* error);
  /* The rows for the experts, and which: there after wait_routed. */
  int (*route)(SyCudaBackbone* backbone, int32_t layer, SyCudaRouted* routed, SyCudaError* error);
  int (*wait_routed)(SyCudaBackbone* backbone, SyCudaError* error);
  /* Whether what route, or head if that came later, brings to the host is there, or fails. */
  int (*ready)(SyCudaBackbone* backbone, int32_t* done, SyCudaError* error);
  /* What shared experts make of the routed rows; nothing where there are none. */
  int (*shared)(SyCudaBackbone* backbone, int32_t layer, SyCudaError* error);
  /* residual = (residual + sums) + shared. */
  int (*combine)(SyCudaBackbone* backbone, int32_t layer, SyCudaError* error);
  /* route, shared, the experts and combine: of a layer whose experts are on the device. What was
   * chosen, ids and weights alone, is on the host when head's logits are, until the next begin. */
  int (*moe)(SyCudaBackbone* backbone, int32_t layer, SyCudaRouted* chosen, SyCudaError* error);
  /* Logits [step.logits, vocab] into `*logits`, pinned, there after wait until the next begin. */
  int (*head)(SyCudaBackbone* backbone, const float** logits, SyCudaError* error);
  /* Pinned memory of the caller's for the logits of the step that was begun last, instead. */
  void (*logits_to)(SyCudaBackbone* backbone, float* logits);
  int (*wait)(SyCudaBackbone* backbone, SyCudaError* error);
  /* Device, [rows, hidden] of the step, as it is when the calls so far are done. */
  float* (*residual)(SyCudaBackbone* backbone);
  /* Makes one block of the cache equal to another, in all layers, and waits for it. Not during a
   * step of anybody's. */
  int (*copy_block)(SyCudaBackbone* backbone, int32_t from, int32_t to, SyCudaError* error);
} SyCudaBackboneApi;

/* Null if the plugin has another version. */
const SyCudaBackboneApi* SyCudaBackbonePlugin(int32_t version);
typedef const SyCudaBackboneApi* (*SyCudaBackbonePluginFunction)(int32_t version);

#ifdef __cplusplus
}
#endif
