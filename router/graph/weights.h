// Everything of a checkpoint but the routed experts, as views into its mapped files: what a router
// computes with. Bound once at load, immutable afterwards; any thread may read.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "services/checkpoint/tensor_source.h"
#include "services/model/spec.h"
#include "services/tensor/buffer.h"
#include "services/tensor/view.h"

namespace switchyard::router {

// Absent parts are empty views. Widths as in services/model/tensor_names.h.
struct GqaWeights {
  WeightView q, k, v, o;
  VectorView q_bias, k_bias, v_bias, o_bias;
  VectorView q_norm, k_norm;
  VectorView sinks;
};

struct MlaWeights {
  WeightView q;  // the single projection where there is no q_lora
  WeightView q_a, q_b;
  VectorView q_a_norm;
  WeightView kv_a;  // rows: latent, then k_rope
  VectorView kv_a_norm;
  // Views into kv_b_proj, whose rows are [k_nope | v] a head: the absorbed form needs no copy.
  // Where it is split, k's half lies transposed: weights that meet integers are used so, as kOutIn;
  // others are turned back into `turned_keys`, so that the order of their sums is that of the
  // undivided kv_b_proj.
  std::vector<WeightView> key_up;    // a head: kInOut, in = nope, out = latent
  std::vector<WeightView> value_up;  // a head: kOutIn, in = latent, out = v_head_dim
  WeightView o;
  std::shared_ptr<AlignedBuffer> turned_keys;  // [heads, nope, latent] or null; of copies as well
};

struct GateWeights {
  WeightView weight;
  VectorView bias;
  std::vector<float> correction_bias;  // [experts] or empty; small and read row by row, so upcast
};

struct MlpWeights {
  WeightView gate, up, down;

  explicit operator bool() const { return static_cast<bool>(down); }
};

struct LayerWeights {
  VectorView input_norm, post_attention_norm;
  GqaWeights gqa;  // one of the two, by spec.attention.kind
  MlaWeights mla;
  GateWeights gate;  // of a MoE layer
  MlpWeights mlp;    // dense MLP, or the shared expert of a MoE layer (empty if it has none)
};

struct RouterWeights {
  WeightView embedding;  // [vocab, hidden]
  VectorView final_norm;
  WeightView lm_head;  // the embedding itself where they are tied
  std::vector<LayerWeights> layers;

  // Maps and binds the tensors of `source`, which must outlive the result. NOT_FOUND names a
  // missing tensor, INVALID_ARGUMENT one of another shape (found and expected), UNIMPLEMENTED one
  // whose dtype we do not compute with.
  static absl::StatusOr<RouterWeights> Load(const ModelSpec& spec,
                                            checkpoint::TensorSource& source);
};

}  // namespace switchyard::router
