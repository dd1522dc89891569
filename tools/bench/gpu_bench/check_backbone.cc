// Small models with random weights through the plugin's backbone (backbone_abi.h): rows that go to
// experts and logits against float64, and the same bits in any company.
#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>

#include "services/kernels/cuda/expert_block.h"
#include "tools/bench/gpu_bench/check.h"
#include "tools/bench/gpu_bench/random_matrix.h"

namespace switchyard::gpu_bench {
namespace {

constexpr int kBlockTokens = 32, kVocab = 200;

using Vector = std::vector<double>;

// Weights on the device, and as they are. A map of several heads is one after the other.
struct Map {
  std::vector<unsigned char> bytes;
  std::vector<RandomMatrix> heads;
  std::vector<double> bias;
  std::vector<std::vector<Vector>> rows;  // of heads, in float64
  SyCudaWeights weights = {};

  Vector Times(const double* x, size_t head = 0) const {
    Vector y;
    for (const Vector& row : rows[head]) {
      y.push_back(std::inner_product(row.begin(), row.end(), x, 0.0));
    }
    for (size_t i = 0; i < bias.size(); ++i) y[i] += bias[i];
    return y;
  }
  Vector Times(const Vector& x) const { return Times(x.data()); }
};

struct LayerWeights {
  bool moe = false;
  Map in, q_b, key_up, value_up, out, gate, gate_up, down;
  std::vector<float> input_norm, post_norm, q_norm, k_norm, sinks, correction;
};

struct Shape {
  const char* name;
  SyCudaBackboneSpec spec;
  cuda::Format format = cuda::Format::kBf16;
  bool biases = false, sinks = false, correction = false;
  int32_t window = 0;  // of every other layer
  int32_t inner = 0, shared_inner = 0;
};

// A chunk of a sequence's tokens.
struct Chunk {
  int sequence = 0;
  int32_t position = 0, count = 0;
};

int32_t TokenOf(int sequence, int32_t position) {
  return (sequence * 977 + position * 131 + 7) % kVocab;
}

// What stands in for the experts: a function of the row and of what the gate chose for it.
void Stand(int32_t rows, int32_t hidden, int32_t top_k, const SyCudaRouted& routed) {
  for (int32_t r = 0; r < rows; ++r) {
    for (int32_t c = 0; c < hidden; ++c) {
      float sum = static_cast<float>(FromBf16(routed.x[r * hidden + c]));
      for (int32_t k = 0; k < top_k; ++k) {
        const int32_t pattern = (routed.ids[r * top_k + k] * 31 + c * 7) % 17 - 8;
        sum += routed.weights[r * top_k + k] * static_cast<float>(pattern);
      }
      routed.sums[r * hidden + c] = 0.05f * sum;
    }
  }
}

// What a step gave: of every layer with experts the rows and choice, and logits of all rows.
struct Outcome {
  struct Routed {
    std::vector<uint16_t> x;
    std::vector<int32_t> ids;
    std::vector<float> weights, sums;
  };
  std::vector<Routed> layers;
  std::vector<float> logits;
};

class Model {
 public:
  Model(Check& check, const Shape& shape, int sequences, int32_t positions);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  bool made() const { return backbone_ != nullptr; }
  const SyCudaBackboneSpec& spec() const { return spec_; }
  bool Run(const std::vector<Chunk>& chunks, Outcome& out);
  // One sequence from its first token in float64, with the choices of `found`, whose rows from
  // `first` on are the sequence's: compares what goes to experts, and logits.
  void Compare(int sequence, int32_t count, const Outcome& found, size_t first);

 private:
  struct State {  // of the sequence that is compared
    std::vector<Vector> residual;
    Distance rows, logits, gate;
  };

  void* Put(const void* data, size_t bytes) {
    buffers_.push_back(check_.Put(data, bytes));
    return buffers_.back();
  }
  const float* Put(const std::vector<float>& values) {
    return values.empty() ? nullptr
                          : static_cast<const float*>(Put(values.data(), values.size() * 4));
  }
  void Make(Map& map, cuda::Format format, int rows, int columns, int heads, bool bias);
  std::vector<float> Norm(int32_t width) {
    std::vector<float> weights;
    for (int32_t i = 0; i < width; ++i) weights.push_back(1.0f + 0.2f * random_.Normal());
    return weights;
  }
  SyCudaLayer MakeLayer(int l, LayerWeights& w);
  void MakeTables(int32_t positions);

  void Rotate(double* x, int32_t position) const;
  Vector Normed(const Vector& x, const std::vector<float>& weight, float eps) const;
  Vector Softmaxed(int l, int head, const Vector& scores) const;
  void Attend(int l, State& state) const;
  Vector AttendLatents(int l, const std::vector<Vector>& in, size_t at,
                       std::vector<Vector>& keys) const;
  Vector AttendHeads(int l, const std::vector<Vector>& in, size_t at,
                     std::vector<Vector>& keys) const;
  Vector FeedForward(const LayerWeights& w, const Vector& x) const;
  void CompareGate(int l, const Vector& x, const Outcome::Routed& found, size_t row,
                   State& state) const;

  Check& check_;
  const Shape shape_;
  SyCudaBackboneSpec spec_;
  Random random_{11};
  std::deque<LayerWeights> layers_;
  std::vector<void*> buffers_;
  std::vector<float> rope_, final_norm_;
  std::vector<uint16_t> embedding_;
  Map head_;
  std::vector<std::vector<int32_t>> tables_;  // of sequences
  SyCudaBackbone* backbone_ = nullptr;
};

bool Mla(const SyCudaBackboneSpec& s) { return s.mla != 0; }
int32_t QWidth(const SyCudaBackboneSpec& s) {
  return s.heads * (Mla(s) ? s.nope + s.rope_dim : s.head_dim);
}
int32_t KeysAt(const SyCudaBackboneSpec& s) {
  return Mla(s) && s.q_lora > 0 ? s.q_lora : QWidth(s);
}
int32_t Record(const SyCudaBackboneSpec& s) {
  return Mla(s) ? s.latent + s.rope_dim : 2 * s.kv_heads * s.head_dim;
}

void Model::Make(Map& map, cuda::Format format, int rows, int columns, int heads, bool bias) {
  const bool bf16 = format == cuda::Format::kBf16;
  const SyCudaMatrix matrix{static_cast<int32_t>(format), rows, columns, bf16 ? 0 : 32, 1, 0};
  const cuda::TileShape shape = cuda::ShapeOf(matrix);
  map.bytes.resize(shape.bytes() * static_cast<size_t>(heads));
  for (int h = 0; h < heads; ++h) {
    unsigned char* const at = map.bytes.data() + shape.bytes() * static_cast<size_t>(h);
    map.heads.emplace_back(shape, random_.Bits(), at);
    std::vector<Vector>& values = map.rows.emplace_back(static_cast<size_t>(rows));
    for (int r = 0; r < rows; ++r) map.heads.back().Row(r, values[static_cast<size_t>(r)]);
  }
  map.weights = {.shape = matrix, .tiles = Put(map.bytes.data(), map.bytes.size())};
  if (!bias) return;
  std::vector<float> floats(static_cast<size_t>(shape.row_tiles()) * cuda::kTileRows);
  for (int r = 0; r < rows; ++r) {
    floats[static_cast<size_t>(r)] = 0.3f * random_.Normal();
    map.bias.push_back(static_cast<double>(floats[static_cast<size_t>(r)]));
  }
  map.weights.bias = Put(floats);
}

SyCudaLayer Model::MakeLayer(int l, LayerWeights& w) {
  const SyCudaBackboneSpec& s = spec_;
  const cuda::Format format = shape_.format;
  w.moe = l > 0 && s.gate.experts > 0;
  Make(w.in, format, KeysAt(s) + Record(s), s.hidden, 1, shape_.biases);
  w.input_norm = Norm(s.hidden), w.post_norm = Norm(s.hidden);
  if (Mla(s)) {
    if (s.q_lora > 0) {
      Make(w.q_b, format, QWidth(s), s.q_lora, 1, false);
      w.q_norm = Norm(s.q_lora);
    }
    w.k_norm = Norm(s.latent);
    Make(w.key_up, format, s.latent, s.nope, s.heads, false);
    Make(w.value_up, format, s.value, s.latent, s.heads, false);
    Make(w.out, format, s.hidden, s.heads * s.value, 1, false);
  } else {
    if (s.qk_norm == SY_CUDA_QK_HEADS) w.q_norm = Norm(s.head_dim), w.k_norm = Norm(s.head_dim);
    Make(w.out, format, s.hidden, s.heads * s.head_dim, 1, shape_.biases);
  }
  for (int h = 0; h < s.heads && shape_.sinks; ++h) w.sinks.push_back(random_.Normal());
  const int32_t inner = w.moe ? shape_.shared_inner : shape_.inner;
  if (w.moe) {
    Make(w.gate, cuda::Format::kBf16, s.gate.experts, s.hidden, 1, shape_.biases);
    for (int e = 0; e < s.gate.experts && shape_.correction; ++e) {
      w.correction.push_back(0.1f * random_.Normal());
    }
  }
  if (inner > 0) {
    Make(w.gate_up, format, 2 * inner, s.hidden, 1, false);
    Make(w.down, format, s.hidden, inner, 1, false);
  }
  const size_t cache = tables_.size() * tables_[0].size() * s.block_stride_bytes;
  const std::vector<unsigned char> nans(cache, 0xff);  // what is read before it is written shows
  return {.window = l % 2 == 1 ? shape_.window : 0,
          .cache = Put(nans.data(), nans.size()),
          .input_norm = Put(w.input_norm),
          .post_norm = Put(w.post_norm),
          .in = w.in.weights,
          .q_norm = Put(w.q_norm),
          .k_norm = Put(w.k_norm),
          .q_b = w.q_b.weights,
          .key_up = w.key_up.weights,
          .value_up = w.value_up.weights,
          .out = w.out.weights,
          .sinks = Put(w.sinks),
          .moe = w.moe,
          .gate = w.gate.weights,
          .correction_bias = Put(w.correction),
          .gate_up = w.gate_up.weights,
          .down = w.down.weights};
}

// Block tables, in no order, and angles.
void Model::MakeTables(int32_t positions) {
  const int32_t blocks = (positions + kBlockTokens - 1) / kBlockTokens;
  std::vector<int32_t> all(static_cast<size_t>(blocks) * tables_.size());
  std::iota(all.begin(), all.end(), 0);
  for (size_t i = all.size() - 1; i > 0; --i) {
    std::swap(all[i], all[static_cast<size_t>(random_.Below(static_cast<int>(i) + 1))]);
  }
  for (auto& table : tables_) {
    table.assign(all.end() - blocks, all.end());
    all.resize(all.size() - static_cast<size_t>(blocks));
  }
  const int half = spec_.rope_dim / 2;
  for (int32_t p = 0; p < positions; ++p) {
    for (const bool sine : {false, true}) {
      for (int i = 0; i < half; ++i) {
        const double angle = p * std::pow(10000.0, -static_cast<double>(i) / half);
        rope_.push_back(static_cast<float>(sine ? std::sin(angle) : std::cos(angle)));
      }
    }
  }
}

Model::Model(Check& check, const Shape& shape, int sequences, int32_t positions)
    : check_(check), shape_(shape), spec_(shape.spec), tables_(static_cast<size_t>(sequences)) {
  MakeTables(positions);
  for (int i = 0; i < kVocab * spec_.hidden; ++i) embedding_.push_back(ToBf16(random_.Normal()));
  final_norm_ = Norm(spec_.hidden);
  Make(head_, cuda::Format::kBf16, kVocab, spec_.hidden, 1, false);
  spec_.vocab = kVocab;
  spec_.norm_eps = spec_.lora_norm_eps = 1e-6f;
  spec_.rope = Put(rope_);
  spec_.positions = positions;
  spec_.softmax_scale = 1.0f / std::sqrt(static_cast<float>(Mla(spec_) ? spec_.nope + spec_.rope_dim
                                                                       : spec_.head_dim));
  spec_.kv_groups = 1;
  spec_.block_tokens = kBlockTokens;
  spec_.block_stride_bytes = static_cast<uint64_t>(Record(spec_)) * 2 * kBlockTokens;
  spec_.embedding = static_cast<const uint16_t*>(Put(embedding_.data(), embedding_.size() * 2));
  spec_.final_norm = Put(final_norm_);
  spec_.lm_head = head_.weights;
  std::vector<SyCudaLayer> layers;
  for (int l = 0; l < spec_.layers; ++l) layers.push_back(MakeLayer(l, layers_.emplace_back()));
  check_.Ok(
      check_.backbone().create(check_.context(), &spec_, layers.data(), &backbone_, check_.error()),
      "create");
}

Model::~Model() {
  if (backbone_ != nullptr) check_.backbone().destroy(backbone_);
  for (void* buffer : buffers_) check_.Release(buffer);
}

bool Model::Run(const std::vector<Chunk>& chunks, Outcome& out) {
  std::vector<int32_t> tokens, positions, counts, logit_rows;
  std::vector<const int32_t*> tables;
  for (const Chunk& c : chunks) {
    counts.push_back(c.count);
    tables.push_back(tables_[static_cast<size_t>(c.sequence)].data());
    for (int32_t i = 0; i < c.count; ++i) {
      logit_rows.push_back(static_cast<int32_t>(tokens.size()));
      tokens.push_back(TokenOf(c.sequence, c.position + i));
      positions.push_back(c.position + i);
    }
  }
  const auto rows = static_cast<int32_t>(tokens.size());
  const SyCudaStep step{.rows = rows,
                        .sequences = static_cast<int32_t>(chunks.size()),
                        .logits = rows,
                        .tokens = tokens.data(),
                        .positions = positions.data(),
                        .sequence_rows = counts.data(),
                        .tables = tables.data(),
                        .logit_rows = logit_rows.data()};
  const SyCudaBackboneApi& api = check_.backbone();
  SyCudaError* const error = check_.error();
  bool ok = check_.Ok(api.begin(backbone_, &step, error), "begin");
  out.layers.clear();
  for (int l = 0; l < spec_.layers && ok; ++l) {
    ok = check_.Ok(api.attention(backbone_, l, error), "attention");
    if (!layers_[static_cast<size_t>(l)].moe) {
      ok = ok && check_.Ok(api.dense(backbone_, l, error), "dense");
      continue;
    }
    SyCudaRouted routed;
    ok = ok && check_.Ok(api.route(backbone_, l, &routed, error), "route") &&
         check_.Ok(api.wait_routed(backbone_, error), "wait_routed") &&
         check_.Ok(api.shared(backbone_, l, error), "shared");
    if (!ok) break;
    Stand(rows, spec_.hidden, spec_.gate.top_k, routed);
    const int32_t n = rows * spec_.hidden, chosen = rows * spec_.gate.top_k;
    out.layers.push_back({{routed.x, routed.x + n},
                          {routed.ids, routed.ids + chosen},
                          {routed.weights, routed.weights + chosen},
                          {routed.sums, routed.sums + n}});
    ok = check_.Ok(api.combine(backbone_, l, error), "combine");
  }
  const float* logits = nullptr;
  ok = ok && check_.Ok(api.head(backbone_, &logits, error), "head") &&
       check_.Ok(api.wait(backbone_, error), "wait");
  if (ok) out.logits.assign(logits, logits + int64_t{rows} * kVocab);
  return ok;
}

// ---- float64 ----

Vector Model::Normed(const Vector& x, const std::vector<float>& weight, float eps) const {
  double squares = 0;
  for (const double v : x) squares += v * v;
  const double scale =
      1 / std::sqrt(squares / static_cast<double>(x.size()) + static_cast<double>(eps));
  Vector y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * static_cast<double>(weight[i]);
  return y;
}

void Model::Rotate(double* x, int32_t position) const {
  const int half = spec_.rope_dim / 2;
  for (int i = 0; i < half; ++i) {
    const float* const angles = rope_.data() + int64_t{position} * spec_.rope_dim;
    const auto c = static_cast<double>(angles[i]), s = static_cast<double>(angles[half + i]);
    double& a = x[spec_.rope_interleaved != 0 ? 2 * i : i];
    double& b = x[spec_.rope_interleaved != 0 ? 2 * i + 1 : i + half];
    const double first = a * c - b * s;
    b = b * c + a * s, a = first;
  }
}

Vector Model::Softmaxed(int l, int head, const Vector& scores) const {
  const LayerWeights& w = layers_[static_cast<size_t>(l)];
  double most = *std::max_element(scores.begin(), scores.end()), sum = 0;
  if (!w.sinks.empty()) {
    const auto sink = static_cast<double>(w.sinks[static_cast<size_t>(head)]);
    most = std::max(most, sink);
    sum = std::exp(sink - most);
  }
  Vector p;
  for (const double s : scores) p.push_back(std::exp(s - most)), sum += p.back();
  for (double& x : p) x /= sum;
  return p;
}

Vector Model::AttendLatents(int l, const std::vector<Vector>& in, size_t at,
                            std::vector<Vector>& keys) const {
  const LayerWeights& w = layers_[static_cast<size_t>(l)];
  const SyCudaBackboneSpec& s = spec_;
  const auto position = static_cast<int32_t>(at);
  const auto nope = static_cast<size_t>(s.nope), latent = static_cast<size_t>(s.latent);
  const auto rope = static_cast<size_t>(s.rope_dim);
  const auto kv = in[at].begin() + KeysAt(s);
  Vector key = Normed({kv, kv + s.latent}, w.k_norm, s.lora_norm_eps);
  key.insert(key.end(), kv + s.latent, in[at].end());
  Rotate(key.data() + latent, position);
  keys.push_back(key);
  Vector q(in[at].begin(), kv);
  if (s.q_lora > 0) q = w.q_b.Times(Normed(q, w.q_norm, s.lora_norm_eps));
  Vector values;
  for (int h = 0; h < s.heads; ++h) {
    double* const of_head = q.data() + static_cast<size_t>(h) * (nope + rope);
    Vector query = w.key_up.Times(of_head, static_cast<size_t>(h));
    Rotate(of_head + nope, position);
    query.insert(query.end(), of_head + nope, of_head + nope + rope);
    Vector scores;
    for (const Vector& k : keys) {
      scores.push_back(std::inner_product(k.begin(), k.end(), query.begin(), 0.0) *
                       static_cast<double>(s.softmax_scale));
    }
    const Vector p = Softmaxed(l, h, scores);
    Vector sum(latent);
    for (size_t j = 0; j < keys.size(); ++j) {
      for (size_t i = 0; i < latent; ++i) sum[i] += p[j] * keys[j][i];
    }
    const Vector value = w.value_up.Times(sum.data(), static_cast<size_t>(h));
    values.insert(values.end(), value.begin(), value.end());
  }
  return values;
}

Vector Model::AttendHeads(int l, const std::vector<Vector>& in, size_t at,
                          std::vector<Vector>& keys) const {
  const LayerWeights& w = layers_[static_cast<size_t>(l)];
  const SyCudaBackboneSpec& s = spec_;
  const auto dim = static_cast<size_t>(s.head_dim), kv_heads = static_cast<size_t>(s.kv_heads);
  const auto q_width = static_cast<size_t>(QWidth(s));
  Vector row = in[at];
  for (size_t h = 0; h < static_cast<size_t>(s.heads) + kv_heads; ++h) {
    const auto begin = row.begin() + static_cast<ptrdiff_t>(h * dim);
    const bool key = h * dim >= q_width;
    if (!w.q_norm.empty()) {
      const Vector normed =
          Normed({begin, begin + s.head_dim}, key ? w.k_norm : w.q_norm, s.norm_eps);
      std::copy(normed.begin(), normed.end(), begin);
    }
    Rotate(&*begin, static_cast<int32_t>(at));
  }
  keys.emplace_back(row.begin() + static_cast<ptrdiff_t>(q_width), row.end());
  const int32_t window = l % 2 == 1 ? shape_.window : 0;
  const size_t first =
      window > 0 && at + 1 > static_cast<size_t>(window) ? at + 1 - static_cast<size_t>(window) : 0;
  Vector values;
  for (size_t h = 0; h < static_cast<size_t>(s.heads); ++h) {
    const size_t of = h / (static_cast<size_t>(s.heads) / kv_heads) * dim;
    Vector scores, sum(dim);
    for (size_t j = first; j <= at; ++j) {
      const double* const key = keys[j].data() + of;
      scores.push_back(std::inner_product(key, key + dim, row.data() + h * dim, 0.0) *
                       static_cast<double>(s.softmax_scale));
    }
    const Vector p = Softmaxed(l, static_cast<int>(h), scores);
    for (size_t j = first; j <= at; ++j) {
      const double* const value = keys[j].data() + kv_heads * dim + of;
      for (size_t i = 0; i < dim; ++i) sum[i] += p[j - first] * value[i];
    }
    values.insert(values.end(), sum.begin(), sum.end());
  }
  return values;
}

void Model::Attend(int l, State& state) const {
  const LayerWeights& w = layers_[static_cast<size_t>(l)];
  std::vector<Vector> in, keys;
  for (const Vector& x : state.residual) {
    in.push_back(w.in.Times(Normed(x, w.input_norm, spec_.norm_eps)));
  }
  for (size_t at = 0; at < in.size(); ++at) {
    const Vector delta =
        w.out.Times(Mla(spec_) ? AttendLatents(l, in, at, keys) : AttendHeads(l, in, at, keys));
    for (size_t i = 0; i < delta.size(); ++i) state.residual[at][i] += delta[i];
  }
}

Vector Model::FeedForward(const LayerWeights& w, const Vector& x) const {
  if (w.down.rows.empty()) return Vector(x.size());
  const Vector both = w.gate_up.Times(x);
  Vector inner;
  for (size_t i = 0; i < both.size() / 2; ++i) {
    const double gate = both[static_cast<size_t>(cuda::GateUpRow(static_cast<int32_t>(i), false))];
    inner.push_back(gate / (1 + std::exp(-gate)) *
                    both[static_cast<size_t>(cuda::GateUpRow(static_cast<int32_t>(i), true))]);
  }
  return w.down.Times(inner);
}

// The weights of what was chosen, and that nothing that was left out is better by more than logits
// are apart.
void Model::CompareGate(int l, const Vector& x, const Outcome::Routed& found, size_t row,
                        State& state) const {
  const LayerWeights& w = layers_[static_cast<size_t>(l)];
  const SyCudaGateSpec& gate = spec_.gate;
  const auto top_k = static_cast<size_t>(gate.top_k);
  Vector scores = w.gate.Times(x);
  const double most = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& s : scores) {
    s = gate.score == SY_CUDA_SIGMOID ? 1 / (1 + std::exp(-s)) : std::exp(s - most);
    sum += s;
  }
  if (gate.score != SY_CUDA_SIGMOID) {
    for (double& s : scores) s /= sum;
  }
  std::vector<char> chosen(scores.size());
  double of_chosen = 0, lowest = INFINITY, left = -INFINITY;
  const auto wanted = [&](size_t e) {
    return scores[e] + (w.correction.empty() ? 0.0 : static_cast<double>(w.correction[e]));
  };
  for (size_t k = 0; k < top_k; ++k) {
    const int32_t id = found.ids[row * top_k + k];
    check_.Expect(id >= 0 && id < gate.experts && (k == 0 || id > found.ids[row * top_k + k - 1]),
                  "layer %d, row %zu: chose expert %d", l, row, id);
    if (id < 0 || id >= gate.experts) return;
    const auto e = static_cast<size_t>(id);
    chosen[e] = 1, of_chosen += scores[e], lowest = std::min(lowest, wanted(e));
  }
  for (size_t e = 0; e < scores.size(); ++e) {
    if (!chosen[e]) left = std::max(left, wanted(e));
  }
  check_.Expect(gate.group_score != SY_CUDA_GROUP_NONE || left <= lowest + 0.02,
                "layer %d, row %zu: an expert of %.4f was left out for one of %.4f", l, row, left,
                lowest);
  for (size_t k = 0; k < top_k; ++k) {
    const double score = scores[static_cast<size_t>(found.ids[row * top_k + k])];
    state.gate.Add(static_cast<double>(found.weights[row * top_k + k]),
                   score / (gate.normalise != 0 ? of_chosen : 1) * static_cast<double>(gate.scale));
  }
}

void Model::Compare(int sequence, int32_t count, const Outcome& found, size_t first) {
  const auto hidden = static_cast<size_t>(spec_.hidden);
  State state;
  for (int32_t p = 0; p < count; ++p) {
    const auto at = static_cast<size_t>(TokenOf(sequence, p)) * hidden;
    Vector& x = state.residual.emplace_back();
    for (size_t i = 0; i < hidden; ++i) x.push_back(FromBf16(embedding_[at + i]));
  }
  size_t moe = 0;
  for (int l = 0; l < spec_.layers; ++l) {
    const LayerWeights& w = layers_[static_cast<size_t>(l)];
    Attend(l, state);
    for (size_t p = 0; p < static_cast<size_t>(count); ++p) {
      Vector& residual = state.residual[p];
      const Vector x = Normed(residual, w.post_norm, spec_.norm_eps);
      if (w.moe) {
        const Outcome::Routed& routed = found.layers[moe];
        for (size_t i = 0; i < hidden; ++i) {
          state.rows.Add(FromBf16(routed.x[(first + p) * hidden + i]), x[i]);
          residual[i] += static_cast<double>(routed.sums[(first + p) * hidden + i]);
        }
        CompareGate(l, x, routed, first + p, state);
      }
      const Vector delta = FeedForward(w, x);
      for (size_t i = 0; i < hidden; ++i) residual[i] += delta[i];
    }
    moe += w.moe;
  }
  for (size_t p = 0; p < static_cast<size_t>(count); ++p) {
    const Vector logits = head_.Times(Normed(state.residual[p], final_norm_, spec_.norm_eps));
    for (size_t i = 0; i < logits.size(); ++i) {
      state.logits.Add(static_cast<double>(found.logits[(first + p) * kVocab + i]), logits[i]);
    }
  }
  // bf16 rounds by 2^-9, and a layer has some ten roundings one after the other.
  if (moe > 0) check_.Near(state.rows, 2e-2, "rows");
  if (moe > 0) check_.Near(state.gate, 4e-2, "gate");
  check_.Near(state.logits, 3e-2, "logits");
}

std::vector<Shape> Shapes() {
  const SyCudaGateSpec softmax{.experts = 16, .top_k = 3, .score = SY_CUDA_SOFTMAX, .scale = 1};
  const SyCudaGateSpec v3{.experts = 32,
                          .top_k = 4,
                          .score = SY_CUDA_SIGMOID,
                          .group_score = SY_CUDA_GROUP_TOP_2,
                          .groups = 4,
                          .topk_groups = 2,
                          .normalise = 1,
                          .normalise_eps = 0,
                          .scale = 2.5f};
  SyCudaBackboneSpec small{.hidden = 64,
                           .layers = 2,
                           .mla = 1,
                           .heads = 4,
                           .latent = 32,
                           .nope = 16,
                           .value = 16,
                           .rope_dim = 8,
                           .rope_interleaved = 1,
                           .gate = softmax};
  SyCudaBackboneSpec lite{.hidden = 256,
                          .layers = 3,
                          .mla = 1,
                          .heads = 16,
                          .latent = 512,
                          .nope = 128,
                          .value = 128,
                          .rope_dim = 64,
                          .rope_interleaved = 1,
                          .gate = softmax};
  SyCudaBackboneSpec large = lite;
  large.heads = 128, large.q_lora = 96, large.gate = v3, large.layers = 2;
  SyCudaBackboneSpec heads{.hidden = 128,
                           .layers = 2,
                           .heads = 8,
                           .kv_heads = 2,
                           .head_dim = 16,
                           .rope_dim = 16,
                           .gate = softmax};
  SyCudaBackboneSpec wide = heads;
  wide.head_dim = wide.rope_dim = 128, wide.qk_norm = SY_CUDA_QK_HEADS;
  SyCudaBackboneSpec narrow = heads;
  narrow.heads = 64, narrow.kv_heads = 8, narrow.head_dim = narrow.rope_dim = 64;
  using cuda::Format;
  return {
      {"latents of 32", small, Format::kBf16, false, false, false, 0, 96, 64},
      {"heads of 16, window, sinks", heads, Format::kBf16, true, true, false, 24, 96, 0},
      {"latents of 512, 16 heads", lite, Format::kBf16, false, false, false, 0, 384, 128},
      {"latents of 512, 128 heads, e4m3", large, Format::kE4M3, false, false, true, 0, 256, 128},
      {"heads of 128", wide, Format::kBf16, false, false, false, 0, 256, 0},
      {"heads of 64, window, sinks", narrow, Format::kI8, true, true, false, 40, 256, 0}};
}

// Rows [from, from + count) of `some` are rows [at, …) of `all`.
void ExpectSame(Check& check, const Outcome& all, size_t at, const Outcome& some, size_t from,
                size_t count, const char* what) {
  const float *a = all.logits.data() + at * kVocab, *b = some.logits.data() + from * kVocab;
  size_t differ = 0;
  for (size_t i = 0; i < count * kVocab; ++i) differ += std::memcmp(a + i, b + i, 4) != 0;
  check.Expect(differ == 0, "%zu of %zu logits have other bits %s", differ, count * kVocab, what);
}

void CheckShape(Check& check, const Shape& shape, int32_t length, bool compare = true) {
  if (!check.Begin("backbone " + std::string(shape.name) + ", " + std::to_string(length) +
                   " tokens")) {
    return;
  }
  const int32_t third = length / 3, piece = length - third;
  Model model(check, shape, 3, length + 1), other(check, shape, 3, length + 1);
  Outcome all, some;
  if (model.made() && other.made() && model.Run({{0, 0, length}, {1, 0, third}, {2, 0, 1}}, all)) {
    if (compare) model.Compare(0, length, all, 0);
    const auto size = [](int32_t n) { return static_cast<size_t>(n); };
    if (other.Run({{1, 0, third}}, some)) {
      ExpectSame(check, all, size(length), some, 0, size(third), "alone");
    }
    if (other.Run({{2, 0, 1}, {0, 0, piece}}, some)) {
      ExpectSame(check, all, size(length + third), some, 0, 1, "among others");
      ExpectSame(check, all, 0, some, 1, size(piece), "in another order");
    }
    if (other.Run({{0, piece, third - 1}}, some)) {
      ExpectSame(check, all, size(piece), some, 0, size(third - 1), "as a second piece");
    }
    if (other.Run({{0, length - 1, 1}}, some)) {
      ExpectSame(check, all, size(length - 1), some, 0, 1, "decoded");
    }
  }
  check.End();
}

}  // namespace

void CheckBackbone(Check& check) {
  const std::vector<Shape> shapes = Shapes();
  if (check.options().quick) {
    for (size_t i = 0; i < 2; ++i) CheckShape(check, shapes[i], 41);
    return;
  }
  for (const Shape& shape : shapes) {
    CheckShape(check, shape, 130);
    CheckShape(check, shape, 7);
  }
  CheckShape(check, shapes[0], 2100);  // several splits of keys, walked by one block
  CheckShape(check, shapes[1], 2100);
  CheckShape(check, shapes[2], 1500, false);  // float64 would take minutes
}

}  // namespace switchyard::gpu_bench
