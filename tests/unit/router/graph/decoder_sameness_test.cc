// The numbers of a request are a function of the request alone: one baseline (alone, in one go, one
// thread, one micro-batch) and every other way to compute it, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <tuple>

#include "tests/support/decoder_harness.h"
#include "tests/support/golden.h"

namespace switchyard::test {
namespace {

using Chunk = DecoderHarness::Chunk;
using Sequence = DecoderHarness::Sequence;

constexpr int64_t kBlocks = 64;

// One of each kind of attention.
const char* const kModels[] = {"tiny-r1", "deepseek-v2-tiny", "qwen3-moe-tiny", "olmoe-tiny",
                               "mixtral-swa-tiny", "gpt-oss-tiny",
                               // and of weights
                               "deepseek-v3-tiny.int8", "deepseek-v3-tiny.int4-zeros",
                               "deepseek-v3-tiny.fp8", "gpt-oss-tiny.mxfp4",
                               "deepseek-v3-tiny.gptq", "deepseek-v2-tiny.awq"};

bool IsQuantised(const std::string& name) { return name.find('.') != std::string::npos; }

const LoadedModel& ModelOf(const std::string& name) {
  static std::map<std::string, std::unique_ptr<LoadedModel>> models;
  std::unique_ptr<LoadedModel>& model = models[name];
  if (model == nullptr) {
    model = std::make_unique<LoadedModel>(IsQuantised(name)
                                              ? std::string(SY_QUANTISED_MODELS) + "/" + name
                                              : LoadGolden(name).directory);
  }
  return *model;
}

// A fixed walk through the vocabulary.
std::vector<int32_t> Tokens(const ModelSpec& spec, uint32_t seed, int count) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(spec.vocab)));
  }
  return tokens;
}

// Logits of all rows of one sequence, collected over steps.
struct Logits {
  std::vector<float> values;

  void Take(const ModelSpec& spec, const router::StepResult& result, int64_t first, int64_t rows) {
    const float* from = result.logits + first * spec.vocab;
    values.insert(values.end(), from, from + rows * spec.vocab);
  }
};

class DecoderSamenessTest : public ::testing::TestWithParam<
                                std::tuple<const char*, DType, DType, kernels::Isa, const char*>> {
 protected:
  DecoderSamenessTest()
      : model_(ModelOf(std::get<0>(GetParam()))),
        dtype_(std::get<1>(GetParam())),
        kv_dtype_(std::get<2>(GetParam())),
        isa_(std::get<3>(GetParam())),
        prompt_(Tokens(model_.spec, 7, 81)) {}

  HarnessOptions Options() const {
    return {.dtype = dtype_,
            .kv_dtype = kv_dtype_,
            .isa = isa_,
            .threads = 1,
            .kv_blocks = kBlocks,
            .routing = *config::ParseRoutingPolicy(std::get<4>(GetParam()))};
  }

  // The prompt alone, cut into chunks of these sizes (the last takes the rest).
  Logits Alone(const HarnessOptions& options, std::vector<size_t> cuts = {}) const {
    DecoderHarness harness(model_, options);
    Sequence sequence;
    Logits logits;
    size_t at = 0;
    cuts.push_back(prompt_.size());
    for (size_t cut : cuts) {
      const size_t count = std::min(cut, prompt_.size() - at);
      if (count == 0) break;
      const router::StepResult& result =
          harness.Step(Chunk{.sequence = &sequence,
                             .tokens = std::span(prompt_).subspan(at, count),
                             .wanted = Chunk::Logits::kAll});
      logits.Take(model_.spec, result, 0, static_cast<int64_t>(count));
      at += count;
    }
    return logits;
  }

  // The prompt in two chunks, in the middle of a ragged batch of a decoding, a starting and a
  // continued sequence.
  Logits InCompany(const HarnessOptions& options, int64_t first_chunk) const {
    DecoderHarness harness(model_, options);
    return InCompany(harness, first_chunk);
  }

  Logits InCompany(DecoderHarness& harness, int64_t first_chunk) const {
    const std::vector<int32_t> other = Tokens(model_.spec, 99, 64);
    const std::span<const int32_t> others(other), mine(prompt_);
    Sequence sequence, decoding, continued, starting;
    harness.Step(Chunk{.sequence = &decoding, .tokens = others.first(40)});
    harness.Step(Chunk{.sequence = &continued, .tokens = others.first(13)});
    Logits logits;
    const std::span<const int32_t> head = mine.first(static_cast<size_t>(first_chunk));
    const Chunk first[] = {
        {.sequence = &decoding, .tokens = others.subspan(40, 1)},
        {.sequence = &sequence, .tokens = head, .wanted = Chunk::Logits::kAll},
        {.sequence = &starting, .tokens = others.first(35), .wanted = Chunk::Logits::kNone}};
    logits.Take(model_.spec, harness.Step(first), 1, first_chunk);
    const std::span<const int32_t> rest = mine.subspan(head.size());
    const Chunk second[] = {
        {.sequence = &continued, .tokens = others.subspan(13, 50), .wanted = Chunk::Logits::kAll},
        {.sequence = &starting, .tokens = others.subspan(35, 1)},
        {.sequence = &sequence, .tokens = rest, .wanted = Chunk::Logits::kAll},
        {.sequence = &decoding, .tokens = others.subspan(41, 1)}};
    logits.Take(model_.spec, harness.Step(second), 51, static_cast<int64_t>(rest.size()));
    return logits;
  }

  void ExpectSame(const Logits& logits, const char* how) const {
    if (base_.values.empty()) base_ = Alone(Options());
    ASSERT_EQ(base_.values.size(), prompt_.size() * static_cast<size_t>(model_.spec.vocab));
    ASSERT_EQ(base_.values.size(), logits.values.size()) << how;
    for (size_t row = 0; row < prompt_.size(); ++row) {
      const size_t vocab = static_cast<size_t>(model_.spec.vocab);
      const float* want = base_.values.data() + row * vocab;
      ASSERT_EQ(std::memcmp(want, logits.values.data() + row * vocab, vocab * sizeof(float)), 0)
          << how << ", position " << row;
      for (size_t i = 0; i < vocab; ++i) ASSERT_EQ(want[i], want[i]) << "NaN at position " << row;
    }
  }

  const LoadedModel& model_;
  const DType dtype_, kv_dtype_;
  const kernels::Isa isa_;
  const std::vector<int32_t> prompt_;
  mutable Logits base_;
};

TEST_P(DecoderSamenessTest, ChunksDoNotMatter) {
  ExpectSame(Alone(Options(), {1, 2, 33, 7, 32, 5}), "odd chunks");
  ExpectSame(Alone(Options(), std::vector<size_t>(81, 1)), "token by token");
}

TEST_P(DecoderSamenessTest, CompanyDoesNotMatter) {
  ExpectSame(InCompany(Options(), 33), "ragged batch");
  ExpectSame(InCompany(Options(), 1), "ragged batch, one token first");
}

TEST_P(DecoderSamenessTest, ThreadsDoNotMatter) {
  for (int threads : {2, 3}) {
    HarnessOptions options = Options();
    options.threads = threads;
    ExpectSame(Alone(options), "threads");
    ExpectSame(InCompany(options, 50), "threads, ragged batch");
  }
}

TEST_P(DecoderSamenessTest, MicroBatchesDoNotMatter) {
  HarnessOptions options = Options();
  options.micro_batches = 2;
  options.polls_until_done = 3;
  DecoderHarness harness(model_, options);
  ExpectSame(InCompany(harness, 40), "two micro-batches");
  EXPECT_EQ(harness.dispatcher().most_in_flight(), 2);
  EXPECT_GT(harness.waits(), 0);
}

TEST_P(DecoderSamenessTest, InstructionSetsOfAClassDoNotMatter) {
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    if (kernels::ArithmeticClass(dtype_, isa) != kernels::ArithmeticClass(dtype_, isa_)) continue;
    HarnessOptions options = Options();
    options.isa = isa;
    ExpectSame(Alone(options), std::string(kernels::Name(isa)).c_str());
  }
}

TEST_P(DecoderSamenessTest, NanStaysWithItsSequence) {
  // A poisoned embedding row, used by a neighbour only.
  const int64_t vocab = model_.spec.vocab, hidden = model_.spec.hidden;
  std::vector<float> table(static_cast<size_t>(vocab * hidden));
  const WeightView& embedding = model_.weights.embedding;
  kernels::ConvertToFloat(embedding.data, embedding.dtype, vocab * hidden, table.data());
  const std::vector<int32_t> other = Tokens(model_.spec, 5, 30);
  int32_t poison = 0;
  while (std::ranges::count(prompt_, poison) > 0) ++poison;
  std::fill_n(table.begin() + poison * hidden, hidden, std::nanf(""));
  router::RouterWeights weights = model_.weights;
  weights.embedding.data = reinterpret_cast<const std::byte*>(table.data());
  weights.embedding.dtype = DType::kF32;

  DecoderHarness harness(model_, weights, Options());
  std::vector<int32_t> sick_tokens = other;
  sick_tokens[3] = poison;
  Sequence sick, sequence;
  const Chunk chunks[] = {
      {.sequence = &sick, .tokens = sick_tokens, .wanted = Chunk::Logits::kAll},
      {.sequence = &sequence, .tokens = prompt_, .wanted = Chunk::Logits::kAll}};
  const router::StepResult& result = harness.Step(chunks);
  EXPECT_NE(result.logits[3 * vocab], result.logits[3 * vocab]);
  Logits logits;
  logits.Take(model_.spec, result, 30, static_cast<int64_t>(prompt_.size()));
  ExpectSame(logits, "beside a NaN");
}

// Policies that look at a token alone, and models that they are tried on.
const char* const kPolicies[] = {"cumulative:p=0.6",
                                 "entropy:low=0.9,few=1,high=0.95,add=next-best",
                                 "entropy:high=0.9,switch=1", "node-limited:max=1,nodes=2"};
const char* const kPolicyModels[] = {"tiny-r1", "deepseek-v2-tiny", "qwen3-moe-tiny",
                                     "gpt-oss-tiny"};

std::vector<DecoderSamenessTest::ParamType> Params() {
  std::vector<DecoderSamenessTest::ParamType> params;
  for (const char* model : kModels) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const kernels::Isa isa : WidestOfEachClass(dtype)) {
        params.emplace_back(model, dtype, dtype, isa, "gate");
      }
    }
    // Caches of bytes know nothing of the class.
    for (const DType kv_dtype : {DType::kI8, DType::kF8E4M3}) {
      params.emplace_back(model, DType::kBF16, kv_dtype, kernels::SupportedIsas().back(), "gate");
    }
  }
  for (const char* model : kPolicyModels) {
    for (const char* policy : kPolicies) {
      params.emplace_back(model, DType::kBF16, DType::kBF16, kernels::SupportedIsas().back(),
                          policy);
    }
  }
  return params;
}

std::string TestName(const ::testing::TestParamInfo<DecoderSamenessTest::ParamType>& info) {
  const auto& [model, dtype, kv_dtype, isa, policy] = info.param;
  std::string name = std::string(model) + "_" + std::string(kernels::ArithmeticClass(dtype, isa));
  if (kv_dtype != dtype) name += "_" + std::string(Name(kv_dtype));
  if (std::string(policy) != "gate") name += std::string("_") + policy;
  std::ranges::replace_if(
      name, [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Models, DecoderSamenessTest, ::testing::ValuesIn(Params()), TestName);

}  // namespace
}  // namespace switchyard::test
