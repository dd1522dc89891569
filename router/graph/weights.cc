#include "router/graph/weights.h"

#include <utility>

#include "services/base/check.h"
#include "services/base/status.h"
#include "services/kernels/kernels.h"
#include "services/model/tensor_names.h"

namespace switchyard::router {
namespace {

using checkpoint::MappedTensor;
using checkpoint::TensorRange;
using checkpoint::TensorSource;

// Binds tensors by role. The first error is kept and makes every later bind empty, so that the
// callers read as a list of what a layer has.
class Binder {
 public:
  explicit Binder(const TensorSource& source) : source_(source) {}

  const absl::Status& status() const { return status_; }

  WeightView Matrix(const TensorRef& ref) {
    const MappedTensor tensor = Get(ref);
    if (tensor.data == nullptr) return {};
    return checkpoint::MatrixOf(tensor);
  }

  // The matrices of a tensor [heads, out, in].
  std::vector<WeightView> Heads(const TensorRef& ref) {
    const MappedTensor tensor = Get(ref);
    if (tensor.data == nullptr) return {};
    std::vector<WeightView> heads(static_cast<size_t>(tensor.shape[0]),
                                  {.dtype = tensor.dtype,
                                   .layout = WeightLayout::kOutIn,
                                   .out = tensor.shape[1],
                                   .in = tensor.shape[2],
                                   .stride = tensor.shape[2]});
    const int64_t bytes = BytesOf(tensor.dtype, tensor.shape[1] * tensor.shape[2]);
    for (size_t h = 0; h < heads.size(); ++h) {
      heads[h].data = tensor.data + static_cast<int64_t>(h) * bytes;
    }
    return heads;
  }

  VectorView Vector(const TensorRef& ref) {
    const MappedTensor tensor = Get(ref);
    if (tensor.data == nullptr) return {};
    return {.data = tensor.data, .dtype = tensor.dtype, .size = tensor.shape[0]};
  }

 private:
  MappedTensor Get(const TensorRef& ref) {
    if (!ref || !status_.ok()) return {};
    absl::StatusOr<MappedTensor> tensor = source_.Get({.name = ref.name});
    if (tensor.ok()) {
      status_ = CheckTensor(ref, tensor->dtype, tensor->shape, static_cast<bool>(tensor->scales));
      if (status_.ok()) return *std::move(tensor);
    } else {
      status_ = tensor.status();
    }
    return {};
  }

  const TensorSource& source_;
  absl::Status status_;
};

GqaWeights BindGqa(const AttentionTensors& names, Binder& bind) {
  return {.q = bind.Matrix(names.q),
          .k = bind.Matrix(names.k),
          .v = bind.Matrix(names.v),
          .o = bind.Matrix(names.o),
          .q_bias = bind.Vector(names.q_bias),
          .k_bias = bind.Vector(names.k_bias),
          .v_bias = bind.Vector(names.v_bias),
          .o_bias = bind.Vector(names.o_bias),
          .q_norm = bind.Vector(names.q_norm),
          .k_norm = bind.Vector(names.k_norm),
          .sinks = bind.Vector(names.sinks)};
}

// A head's rows of kv_b_proj: nope rows of k first, then v_head_dim rows of v.
void SplitKvB(const AttentionSpec& spec, const WeightView& kv_b, MlaWeights& mla) {
  if (!kv_b) return;
  const int64_t nope = spec.qk_nope_head_dim, v = spec.v_head_dim;
  for (int64_t head = 0; head < spec.heads; ++head) {
    const int64_t row = head * (nope + v);
    WeightView& key = mla.key_up.emplace_back(RowsOf(kv_b, row, nope));
    key.layout = WeightLayout::kInOut;
    std::swap(key.out, key.in);
    mla.value_up.push_back(RowsOf(kv_b, row + nope, v));
  }
}

template <typename T>
void TurnHead(const WeightView& w, T* out) {
  const T* from = reinterpret_cast<const T*>(w.data);
  for (int64_t i = 0; i < w.in; ++i) {
    for (int64_t o = 0; o < w.out; ++o) *out++ = from[o * w.stride + i];
  }
}

// Turns k's half of a split kv_b_proj, each head [latent, nope], back to [nope, latent].
void TurnKeys(MlaWeights& mla) {
  if (mla.key_up.empty() || mla.key_up.front().quantised()) return;
  const WeightView& head = mla.key_up.front();
  const int64_t head_bytes = BytesOf(head.dtype, head.in * head.out);
  mla.turned_keys =
      std::make_shared<AlignedBuffer>(mla.key_up.size() * static_cast<size_t>(head_bytes));
  std::byte* out = mla.turned_keys->data();
  for (WeightView& w : mla.key_up) {
    if (SizeOf(w.dtype) == sizeof(float)) {
      TurnHead(w, reinterpret_cast<float*>(out));
    } else {
      TurnHead(w, reinterpret_cast<uint16_t*>(out));
    }
    w.data = out;
    w.layout = WeightLayout::kInOut;
    w.stride = w.out;
    out += head_bytes;
  }
}

MlaWeights BindMla(const AttentionSpec& spec, const AttentionTensors& names, Binder& bind) {
  MlaWeights mla{.q = bind.Matrix(names.q),
                 .q_a = bind.Matrix(names.q_a),
                 .q_b = bind.Matrix(names.q_b),
                 .q_a_norm = bind.Vector(names.q_a_norm),
                 .kv_a = bind.Matrix(names.kv_a),
                 .kv_a_norm = bind.Vector(names.kv_a_norm),
                 .o = bind.Matrix(names.o)};
  if (spec.split_kv_b) {
    mla.key_up = bind.Heads(names.k_b);
    TurnKeys(mla);
    mla.value_up = bind.Heads(names.v_b);
  } else {
    SplitKvB(spec, bind.Matrix(names.kv_b), mla);
  }
  return mla;
}

GateWeights BindGate(const GateTensors& names, Binder& bind) {
  GateWeights gate{.weight = bind.Matrix(names.weight), .bias = bind.Vector(names.bias)};
  if (const VectorView bias = bind.Vector(names.correction_bias)) {
    gate.correction_bias.resize(static_cast<size_t>(bias.size));
    kernels::ConvertToFloat(bias.data, bias.dtype, bias.size, gate.correction_bias.data());
  }
  return gate;
}

LayerWeights BindLayer(const ModelSpec& spec, const LayerTensors& names, Binder& bind) {
  LayerWeights layer{.input_norm = bind.Vector(names.input_norm),
                     .post_attention_norm = bind.Vector(names.post_attention_norm)};
  if (spec.attention.kind == AttentionKind::kMla) {
    layer.mla = BindMla(spec.attention, names.attention, bind);
  } else {
    layer.gqa = BindGqa(names.attention, bind);
  }
  layer.gate = BindGate(names.gate, bind);
  layer.mlp = {.gate = bind.Matrix(names.mlp.gate),
               .up = bind.Matrix(names.mlp.up),
               .down = bind.Matrix(names.mlp.down)};
  return layer;
}

}  // namespace

absl::StatusOr<RouterWeights> RouterWeights::Load(const ModelSpec& spec, TensorSource& source) {
  const BackboneTensors names = BackboneTensorsOf(spec);
  std::vector<TensorRange> ranges;
  for (const TensorRef& ref : AllTensors(names)) ranges.push_back({.name = ref.name});
  SY_RETURN_IF_ERROR(source.Map(ranges));

  Binder bind(source);
  RouterWeights weights;
  weights.embedding = bind.Matrix(names.embedding);
  weights.final_norm = bind.Vector(names.final_norm);
  weights.lm_head = bind.Matrix(names.lm_head);
  for (const LayerTensors& layer : names.layers) {
    weights.layers.push_back(BindLayer(spec, layer, bind));
  }
  SY_RETURN_IF_ERROR(bind.status());
  SY_CHECK(weights.embedding && weights.lm_head);
  return weights;
}

}  // namespace switchyard::router
