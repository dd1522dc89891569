// Quantised checkpoints against the float32 checkpoints of what their weights stand for.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <iostream>

#include "tests/support/decoder_harness.h"
#include "tests/support/golden.h"

namespace switchyard::test {
namespace {

using Chunk = DecoderHarness::Chunk;

std::string Directory(const std::string& name) {
  return std::string(SY_QUANTISED_MODELS) + "/" + name;
}

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(SY_QUANTISED_MODELS)) {
    const std::string name = entry.path().filename();
    if (!name.ends_with(".float")) names.push_back(name);
  }
  std::ranges::sort(names);
  return names;
}

// Prompts of the golden that the model was made of.
std::vector<GoldenCase> CasesOf(const std::string& name) {
  return LoadGolden(name.substr(0, name.find('.'))).cases;
}

struct Decoded {
  std::vector<int32_t> tokens;
  std::vector<float> logits;  // of every step
};

// Greedy.
Decoded Decode(const LoadedModel& model, const HarnessOptions& options, const GoldenCase& c) {
  DecoderHarness harness(model, options);
  DecoderHarness::Sequence sequence;
  const size_t vocab = static_cast<size_t>(model.spec.vocab);
  Decoded run;
  const router::StepResult* result =
      &harness.Step(Chunk{.sequence = &sequence, .tokens = c.prompt_ids});
  for (size_t step = 0; step < c.output_ids.size(); ++step) {
    run.logits.insert(run.logits.end(), result->logits, result->logits + vocab);
    run.tokens.push_back(ArgMax({result->logits, vocab}));
    const int32_t next = run.tokens.back();
    result = &harness.Step(Chunk{.sequence = &sequence, .tokens = {&next, 1}});
  }
  return run;
}

class DecoderQuantisedTest : public ::testing::TestWithParam<std::string> {};

// Both widen to the same numbers.
TEST_P(DecoderQuantisedTest, Float32GivesTheBitsOfWidenedWeights) {
  const LoadedModel quantised(Directory(GetParam())), widened(Directory(GetParam() + ".float"));
  const HarnessOptions options = {.dtype = DType::kF32, .threads = 2};
  for (const GoldenCase& c : CasesOf(GetParam())) {
    const Decoded expected = Decode(widened, options, c), run = Decode(quantised, options, c);
    EXPECT_EQ(run.tokens, expected.tokens) << c.name;
    if (!quantised.spec.experts.stacked_out_in) {
      EXPECT_EQ(run.logits, expected.logits) << c.name;
      continue;
    }
    // The float32 form has the other layout, whose sums are in another order.
    ASSERT_EQ(run.logits.size(), expected.logits.size());
    for (size_t i = 0; i < run.logits.size(); ++i) {
      ASSERT_NEAR(run.logits[i], expected.logits[i], 1e-3) << c.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, DecoderQuantisedTest, ::testing::ValuesIn(Names()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::ranges::replace_if(
                               name, [](unsigned char c) { return !std::isalnum(c); }, '_');
                           return name;
                         });

// How many of `tokens` have the largest logit where all before them stand.
int Agreed(const LoadedModel& model, kernels::Isa isa, const GoldenCase& c,
           const std::vector<int32_t>& tokens) {
  DecoderHarness harness(model, {.dtype = DType::kBF16, .isa = isa, .threads = 2});
  DecoderHarness::Sequence sequence;
  std::vector<int32_t> all = c.prompt_ids;
  all.insert(all.end(), tokens.begin(), tokens.end() - 1);
  const router::StepResult& result =
      harness.Step(Chunk{.sequence = &sequence, .tokens = all, .wanted = Chunk::Logits::kAll});
  const size_t vocab = static_cast<size_t>(model.spec.vocab);
  const float* logits = result.logits + (c.prompt_ids.size() - 1) * vocab;
  int agreed = 0;
  for (const int32_t token : tokens) {
    agreed += ArgMax({logits, vocab}) == token;
    logits += vocab;
  }
  return agreed;
}

// Rows of activations are rounded to int8 where weights are integers, and the largest logits of a
// random model lie close together (decoder_golden_test.cc): the bar is on all models together.
TEST(DecoderQuantisedBFloat16Test, AgreesTeacherForced) {
  const std::vector<kernels::Isa> isas = WidestOfEachClass(DType::kBF16);
  std::vector<int> all_agreed(isas.size());
  int all_steps = 0;
  for (const std::string& name : Names()) {
    const LoadedModel quantised(Directory(name)), widened(Directory(name + ".float"));
    std::vector<int> agreed(isas.size());
    int steps = 0;
    for (const GoldenCase& c : CasesOf(name)) {
      const Decoded expected = Decode(widened, {.dtype = DType::kF32, .threads = 2}, c);
      steps += static_cast<int>(expected.tokens.size());
      for (size_t i = 0; i < isas.size(); ++i) {
        agreed[i] += Agreed(quantised, isas[i], c, expected.tokens);
      }
    }
    all_steps += steps;
    for (size_t i = 0; i < isas.size(); ++i) {
      const double share = static_cast<double>(agreed[i]) / steps;
      std::cout << name << ", " << kernels::Name(isas[i]) << ": " << share << "\n";
      EXPECT_GE(share, 0.8) << name << " " << kernels::Name(isas[i]);
      all_agreed[i] += agreed[i];
    }
  }
  for (const int agreed : all_agreed) EXPECT_GE(static_cast<double>(agreed) / all_steps, 0.88);
}

TEST(QuantisedModels, AreFound) { EXPECT_GE(Names().size(), 15u); }

}  // namespace
}  // namespace switchyard::test
