#include "tests/support/decoder_harness.h"

#include <algorithm>
#include <cstring>
#include <iostream>
#include <map>
#include <utility>

#include "services/base/check.h"
#include "services/model/spec_from_hf.h"

namespace switchyard::test {
namespace {

template <typename T>
T OrDie(absl::StatusOr<T> value, const std::string& what) {
  if (!value.ok()) {
    std::cerr << what << ": " << value.status() << "\n";
    std::abort();
  }
  return *std::move(value);
}

router::KvStorage PoisonedKv(const ModelSpec& spec, const HarnessOptions& options) {
  router::KvStorage kv = OrDie(
      router::KvStorage::Create(spec, options.kv_dtype.value_or(options.dtype), options.kv_blocks),
      "KV storage");
  const size_t layer_bytes = static_cast<size_t>(kv.blocks() * kv.block_stride_bytes());
  for (int layer = 0; layer < spec.num_layers(); ++layer) {
    std::memset(kv.layer(layer), 0xff, layer_bytes);
  }
  return kv;
}

}  // namespace

std::vector<kernels::Isa> WidestOfEachClass(DType dtype) {
  std::map<std::string_view, kernels::Isa> widest;
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    widest[kernels::ArithmeticClass(dtype, isa)] = isa;
  }
  std::vector<kernels::Isa> isas;
  for (const auto& [name, isa] : widest) isas.push_back(isa);
  return isas;
}

LoadedModel::LoadedModel(const std::string& directory)
    : spec(OrDie(LoadSpec(directory), directory)),
      source(OrDie(checkpoint::OpenCheckpoint(directory), directory)),
      weights(OrDie(router::RouterWeights::Load(spec, *source), directory)),
      experts(OrDie(DirectExperts::Load(spec, *source), directory)) {}

DecoderHarness::DecoderHarness(const LoadedModel& model, const HarnessOptions& options)
    : DecoderHarness(model, model.weights, options) {}

DecoderHarness::DecoderHarness(const LoadedModel& model, const router::RouterWeights& weights,
                               const HarnessOptions& options)
    : model_(model),
      pool_(options.threads),
      compute_(options.isa, pool_),
      kv_(PoisonedKv(model.spec, options)),
      dispatcher_(model.spec, model.experts, compute_, options.dtype, options.polls_until_done),
      runner_(MakeRunner(model, weights, options)),
      micro_batches_(options.micro_batches) {}

std::unique_ptr<router::ModelRunner> DecoderHarness::MakeRunner(
    const LoadedModel& model, const router::RouterWeights& weights, const HarnessOptions& options) {
  router::Dispatcher& dispatcher = options.instead == nullptr ? dispatcher_ : *options.instead;
  if (options.make_runner) return options.make_runner(dispatcher);
  return std::make_unique<router::Decoder>(
      router::DecoderOptions{
          .dtype = options.dtype, .routing = options.routing, .lost_experts = options.lost_experts},
      model.spec, weights, compute_, kv_, dispatcher);
}

const router::StepResult& DecoderHarness::Step(std::span<const Chunk> chunks) {
  batch_.Clear();
  batch_.micro_batches = micro_batches_;
  for (const Chunk& chunk : chunks) Add(chunk);
  waits_ = 0;
  runner_->Start(batch_);
  while (runner_->Advance() == router::ModelRunner::Progress::kWaiting) {
    ++waits_;
    runner_->Wait(absl::InfiniteFuture());
  }
  return runner_->result();
}

void DecoderHarness::Add(const Chunk& chunk) {
  Sequence& sequence = *chunk.sequence;
  const int64_t end = sequence.length + static_cast<int64_t>(chunk.tokens.size());
  // A table never moves while the sequence lives: the batch points into it.
  const auto groups = static_cast<size_t>(kv_.groups());
  sequence.blocks.resize(groups);
  batch_.block_tables.resize(groups);
  for (std::vector<int32_t>& blocks : sequence.blocks) {
    blocks.reserve(static_cast<size_t>(model_.spec.max_position / router::kBlockTokens) + 1);
    while (static_cast<int64_t>(blocks.size()) * router::kBlockTokens < end) {
      SY_CHECK(blocks_taken_ < kv_.blocks());
      // An odd factor walks all blocks of a power of two, out of order.
      blocks.push_back(static_cast<int32_t>((blocks_taken_++ * 37) % kv_.blocks()));
    }
  }
  for (size_t i = 0; i < chunk.tokens.size(); ++i) {
    const int32_t row = static_cast<int32_t>(batch_.rows());
    const bool last = i + 1 == chunk.tokens.size();
    batch_.tokens.push_back(chunk.tokens[i]);
    batch_.positions.push_back(sequence.length++);
    for (size_t group = 0; group < groups; ++group) {
      batch_.block_tables[group].push_back(sequence.blocks[group].data());
    }
    if (chunk.wanted == Chunk::Logits::kAll || (chunk.wanted == Chunk::Logits::kLast && last)) {
      batch_.logit_rows.push_back(row);
    }
    if (chunk.trace) batch_.trace_rows.push_back(row);
  }
}

int32_t ArgMax(std::span<const float> x) {
  return static_cast<int32_t>(std::ranges::max_element(x) - x.begin());
}

}  // namespace switchyard::test
