// A decode step of a model of DeepSeek-V2-Lite's shape with random weights in bf16, 1024 tokens in
// each stream's cache: decode STREAMS... prints a line for each. The step's kernels are those of
// the backbone's calls and of the experts' frames, captured and replayed as one graph, which is
// what is left where nothing leaves the device. Choosing the next token is not among them.
#include <deque>

#include "services/kernels/cuda/backbone.h"
#include "tools/bench/gpu_bench/frames.cuh"

namespace switchyard::gpu_bench {
namespace {

constexpr int kHidden = 2048, kLayers = 27, kVocab = 102400, kHeads = 16, kLatent = 512;
constexpr int kNope = 128, kRope = 64, kValue = 128, kDenseInner = 10944, kSharedInner = 2816;
constexpr int kExperts = 64, kTopK = 6, kInner = 1408;
constexpr int kContext = 1024, kBlockTokens = 32, kMostStreams = 64;
constexpr size_t kRecordBytes = (kLatent + kRope) * 2;

class Model {
 public:
  explicit Model(Gpu& gpu);
  ~Model() { gpu_.backbone().destroy(backbone_); }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  void Measure(Stopwatch& watch, int streams);

 private:
  using Frames = std::vector<std::unique_ptr<Frame>>;

  SyCudaWeights Map(int rows, int columns, int heads = 1);
  float* Ones(int count);
  SyCudaLayer Layer(int l);
  // A step's calls between two of the experts': what follows those of layer `from` up to what they
  // of layer `to` wait for.
  void Calls(int from, int to);
  void Step(Frames& frames, bool capture, cudaGraph_t whole, size_t* kernels);

  Gpu& gpu_;
  uint32_t seed_ = 1;
  int streams_ = 0;          // of the step
  double weight_bytes_ = 0;  // of the backbone
  SyCudaBackbone* backbone_ = nullptr;
  std::deque<Experts> experts_;  // of layers from the second on
};

SyCudaWeights Model::Map(int rows, int columns, int heads) {
  const SyCudaMatrix matrix{
      .format = SY_CUDA_BF16, .rows = rows, .columns = columns, .group_rows = 1};
  const cuda::TileShape shape = cuda::ShapeOf(matrix);
  const size_t bytes = shape.bytes() * static_cast<size_t>(heads);
  auto* const tiles = static_cast<unsigned char*>(gpu_.Device(bytes));
  for (int h = 0; h < heads; ++h) {
    gpu_.FillTiles(shape, tiles + shape.bytes() * static_cast<size_t>(h), seed_++);
  }
  weight_bytes_ += double(bytes);
  return {.shape = matrix, .tiles = tiles};
}

float* Model::Ones(int count) {
  const std::vector<float> ones(static_cast<size_t>(count), 1.0f);
  auto* const out = static_cast<float*>(gpu_.Device(ones.size() * sizeof(float)));
  SY_BENCH_CUDA(cudaMemcpy(out, ones.data(), ones.size() * sizeof(float), cudaMemcpyHostToDevice));
  return out;
}

SyCudaLayer Model::Layer(int l) {
  const bool moe = l > 0;
  const int inner = moe ? kSharedInner : kDenseInner;
  SyCudaLayer layer{
      .cache = gpu_.RandomBf16(size_t{kMostStreams} * kContext * kRecordBytes / 2, seed_++),
      .input_norm = Ones(kHidden),
      .post_norm = Ones(kHidden),
      .in = Map(kHeads * (kNope + kRope) + kLatent + kRope, kHidden),
      .k_norm = Ones(kLatent),
      .key_up = Map(kLatent, kNope, kHeads),
      .value_up = Map(kValue, kLatent, kHeads),
      .out = Map(kHidden, kHeads * kValue),
      .moe = moe,
      .gate_up = Map(2 * inner, kHidden),
      .down = Map(kHidden, inner)};
  if (moe) {
    layer.gate = Map(kExperts, kHidden);
    experts_.emplace_back(gpu_, "bf16", kHidden, kInner, kExperts);
  }
  return layer;
}

Model::Model(Gpu& gpu) : gpu_(gpu) {
  std::vector<SyCudaLayer> layers;
  for (int l = 0; l < kLayers; ++l) layers.push_back(Layer(l));
  const SyCudaBackboneSpec spec{.hidden = kHidden,
                                .vocab = kVocab,
                                .layers = kLayers,
                                .norm_eps = 1e-6f,
                                .mla = 1,
                                .heads = kHeads,
                                .latent = kLatent,
                                .nope = kNope,
                                .value = kValue,
                                .lora_norm_eps = 1e-6f,
                                .rope_dim = kRope,
                                .rope_interleaved = 1,
                                .rope = Ones(kContext * kRope),
                                .positions = kContext,
                                .softmax_scale = 0.07f,
                                .gate = {.experts = kExperts,
                                         .top_k = kTopK,
                                         .score = SY_CUDA_SOFTMAX,
                                         .groups = 1,
                                         .topk_groups = 1,
                                         .scale = 1},
                                .kv_groups = 1,
                                .block_tokens = kBlockTokens,
                                .block_stride_bytes = kRecordBytes * kBlockTokens,
                                .embedding = gpu.RandomBf16(size_t{kVocab} * kHidden, seed_++),
                                .final_norm = Ones(kHidden),
                                .lm_head = Map(kVocab, kHidden)};
  gpu.Ok(gpu.backbone().create(gpu.context(), &spec, layers.data(), &backbone_, gpu.error()),
         "create");
}

void Model::Calls(int from, int to) {
  const SyCudaBackboneApi& api = gpu_.backbone();
  SyCudaError* const error = gpu_.error();
  if (from > 0) {
    gpu_.Ok(api.shared(backbone_, from, error), "shared");
    gpu_.Ok(api.combine(backbone_, from, error), "combine");
  }
  if (to == kLayers) {
    const float* logits = nullptr;
    return gpu_.Ok(api.head(backbone_, &logits, error), "head");
  }
  if (from == 0) {
    gpu_.Ok(api.attention(backbone_, 0, error), "attention");
    gpu_.Ok(api.dense(backbone_, 0, error), "dense");
  }
  gpu_.Ok(api.attention(backbone_, to, error), "attention");
  SyCudaRouted routed;
  gpu_.Ok(api.route(backbone_, to, &routed, error), "route");
  std::memset(routed.sums, 0, static_cast<size_t>(streams_) * kHidden * sizeof(float));
}

// All calls of a step, or the graph of their kernels, one part behind the other.
void Model::Step(Frames& frames, bool capture, cudaGraph_t whole, size_t* kernels) {
  cudaGraphNode_t last = nullptr;
  const auto add = [&](const Kernels& part) {
    cudaGraphNode_t node;
    SY_BENCH_CUDA(cudaGraphAddChildGraphNode(&node, whole, last == nullptr ? nullptr : &last,
                                             last == nullptr ? 0 : 1, part.graph()));
    last = node;
    *kernels += part.nodes();
  };
  for (int l = 0; l < kLayers; ++l) {
    const auto calls = [&] { Calls(l, l + 1); };
    if (capture) {
      add(Kernels(backbone_->stream(), calls));
    } else {
      calls();
      gpu_.Ok(gpu_.backbone().wait(backbone_, gpu_.error()), "wait");
    }
    if (l + 1 == kLayers) break;
    Experts& experts = experts_[static_cast<size_t>(l)];
    if (capture) {
      add(*KernelsOf(experts, *frames[static_cast<size_t>(l)]));
    } else {
      frames.push_back(std::make_unique<Frame>(gpu_, experts, streams_, kExperts, kTopK,
                                               static_cast<uint64_t>(100 + l)));
    }
  }
}

void Model::Measure(Stopwatch& watch, int streams) {
  streams_ = streams;
  const auto n = static_cast<size_t>(streams);
  std::vector<int32_t> tokens(n), positions(n, kContext - 1), counts(n, 1), rows(n), blocks;
  std::vector<const int32_t*> tables;
  for (int i = 0; i < streams * kContext / kBlockTokens; ++i) blocks.push_back(i);
  for (size_t s = 0; s < n; ++s) {
    tokens[s] = static_cast<int32_t>(s * 977 % kVocab), rows[s] = static_cast<int32_t>(s);
    tables.push_back(blocks.data() + s * kContext / kBlockTokens);
  }
  const SyCudaStep step{.rows = streams,
                        .sequences = streams,
                        .logits = streams,
                        .tokens = tokens.data(),
                        .positions = positions.data(),
                        .sequence_rows = counts.data(),
                        .tables = tables.data(),
                        .logit_rows = rows.data()};
  Frames frames;
  gpu_.Ok(gpu_.backbone().begin(backbone_, &step, gpu_.error()), "begin");
  Step(frames, false, nullptr, nullptr);  // so that all buffers are there
  gpu_.Ok(gpu_.backbone().begin(backbone_, &step, gpu_.error()), "begin");
  gpu_.Ok(gpu_.backbone().wait(backbone_, gpu_.error()), "wait");
  cudaGraph_t whole;
  SY_BENCH_CUDA(cudaGraphCreate(&whole, 0));
  size_t kernels = 0;
  Step(frames, true, whole, &kernels);
  cudaGraphExec_t exec;
  SY_BENCH_CUDA(cudaGraphInstantiate(&exec, whole, 0));
  const cudaStream_t stream = backbone_->stream();
  const double ms = watch.MedianMs(stream, [&] { SY_BENCH_CUDA(cudaGraphLaunch(exec, stream)); });
  SY_BENCH_CUDA(cudaGraphExecDestroy(exec));
  SY_BENCH_CUDA(cudaGraphDestroy(whole));
  double touched = 0;
  for (const auto& frame : frames) touched += frame->touched();
  const double keys = double(n) * kContext * kRecordBytes * kLayers;
  Line("decode")
      .Number("streams", streams)
      .Number("tokens_s", streams / ms * 1e3)
      .Number("ms", ms)
      .Number("context", kContext)
      .Number("experts_a_layer", touched / (kLayers - 1))
      .Number("kernels", double(kernels))
      .Number("bytes", weight_bytes_ + touched * experts_[0].bytes() + keys);
}

}  // namespace

void MeasureDecode(Gpu& gpu, const std::vector<std::string>& words) {
  constexpr double kWanted = 36e9;
  if (double(gpu.free_bytes()) < kWanted) {
    Line("decode").Text("reason", "the model takes 36 GB of the device's memory");
    return;
  }
  Model model(gpu);
  Stopwatch watch(gpu);
  for (const std::string& word : words) {
    const int streams = std::atoi(word.c_str());
    if (streams < 1 || streams > kMostStreams) Die("\"%s\" streams: 1 to 64", word.c_str());
    model.Measure(watch, streams);
  }
}

}  // namespace switchyard::gpu_bench
