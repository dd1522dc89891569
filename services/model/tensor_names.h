// The names and shapes of a checkpoint's tensors by role, for every family: what the router and the
// workers ask a TensorSource for. Plain data made from the spec; knows nothing of files.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "services/model/spec.h"
#include "services/tensor/dtype.h"

namespace switchyard {

// A tensor that the model has; an empty name means that this model has none in this role.
struct TensorRef {
  std::string name;
  std::vector<int64_t> shape;

  explicit operator bool() const { return !name.empty(); }
};

// Linear weights are [out, in]; norms, biases and sinks are vectors.
struct AttentionTensors {
  // GQA. `q` is also MLA's single projection where q_lora_rank is 0; `o` is common to both.
  TensorRef q, k, v, o;  // q [heads*dim, hidden], k and v [kv_heads*dim, hidden],
                         // o [hidden, heads*dim of v]
  TensorRef q_bias, k_bias, v_bias, o_bias;  // where the spec says so
  TensorRef q_norm, k_norm;                  // [head_dim] or the whole projection (QkNorm)
  TensorRef sinks;                           // [heads]
  // MLA
  TensorRef q_a, q_a_norm, q_b;     // [q_lora, hidden], [q_lora], [heads*(nope+rope), q_lora]
  TensorRef kv_a, kv_a_norm, kv_b;  // [kv_lora+rope, hidden], [kv_lora], [heads*(nope+v), kv_lora]
  TensorRef k_b, v_b;  // where kv_b is split: [heads, kv_lora, nope], [heads, v, kv_lora]
};

struct GateTensors {
  TensorRef weight;           // [experts, hidden]
  TensorRef bias;             // [experts]
  TensorRef correction_bias;  // [experts]
};

// A gated MLP: down(act(gate(x)) * up(x)).
struct MlpTensors {
  TensorRef gate, up;  // [intermediate, hidden]
  TensorRef down;      // [hidden, intermediate]
};

struct LayerTensors {
  TensorRef input_norm;           // before attention
  TensorRef post_attention_norm;  // before the MLP or the experts
  AttentionTensors attention;
  GateTensors gate;  // of a MoE layer
  MlpTensors mlp;    // the dense MLP, or the shared expert of a MoE layer; empty if it has none
};

// Everything but the routed experts: what a router loads.
struct BackboneTensors {
  TensorRef embedding;   // [vocab, hidden]
  TensorRef final_norm;  // [hidden]
  TensorRef lm_head;     // [vocab, hidden]; the embedding itself where they are tied
  std::vector<LayerTensors> layers;
};

BackboneTensors BackboneTensorsOf(const ModelSpec& spec);

// All tensors of a backbone that exist, each name once, in order of use.
std::vector<TensorRef> AllTensors(const BackboneTensors& backbone);

// Rows [first, first + count) of dimension 0 of a tensor.
struct TensorSlice {
  TensorRef tensor;  // the whole tensor's name and shape
  int64_t first = 0;
  int64_t count = 0;

  explicit operator bool() const { return static_cast<bool>(tensor); }
};

// One routed expert. Either gate, up and down (separate, Linear layout, the slice is the whole
// tensor) with their biases where spec.experts.bias or, where spec.experts.stacked, gate_up [E,
// hidden, 2*intermediate] (columns: gate 0, up 0, gate 1, …), gate_up_bias [E, 2*intermediate],
// down_in_out [E, intermediate, hidden] and down_bias, of which the slice is row `expert`; where it
// is stacked_out_in gate_up is [E, 2*intermediate, hidden] and down [E, hidden, intermediate].
struct ExpertTensors {
  TensorSlice gate, up, down;
  TensorSlice gate_bias, up_bias;  // [intermediate]
  TensorSlice gate_up, gate_up_bias, down_in_out;
  TensorSlice down_bias;  // [E, hidden] of stacked experts, [hidden] of others
};

// `layer` must be a MoE layer of the spec and `expert` one of its experts (checked: programmer's
// error).
ExpertTensors ExpertTensorsOf(const ModelSpec& spec, int layer, int expert);
// The slices of it that exist.
std::vector<TensorSlice> AllSlices(const ExpertTensors& expert);

// INVALID_ARGUMENT if a checkpoint's tensor has another shape than `expected` or rows that are not
// whole blocks; UNIMPLEMENTED if its dtype is none that we compute with (float32, bfloat16,
// float16, of matrices also blocks and what has `scales` beside it). Both name the tensor.
absl::Status CheckTensor(const TensorRef& expected, DType dtype, const std::vector<int64_t>& shape,
                         bool scales = false);

// The layer of a "model.layers.N.…" tensor, -1 for others. Layers from num_layers() on belong to
// multi-token prediction and are not loaded.
int LayerOfTensor(std::string_view name);

}  // namespace switchyard
