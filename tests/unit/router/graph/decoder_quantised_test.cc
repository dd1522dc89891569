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

// Greedy, or along `forced`.
Decoded Decode(const LoadedModel& model, const HarnessOptions& options, const GoldenCase& c,
               const std::vector<int32_t>& forced = {}) {
  DecoderHarness harness(model, options);
  DecoderHarness::Sequence sequence;
  const size_t vocab = static_cast<size_t>(model.spec.vocab);
  Decoded run;
  const router::StepResult* result =
      &harness.Step(Chunk{.sequence = &sequence, .tokens = c.prompt_ids});
  for (size_t step = 0; step < c.output_ids.size(); ++step) {
    run.logits.insert(run.logits.end(), result->logits, result->logits + vocab);
    run.tokens.push_back(ArgMax({result->logits, vocab}));
    const int32_t next = forced.empty() ? run.tokens.back() : forced[step];
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
    EXPECT_EQ(run.logits, expected.logits) << c.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, DecoderQuantisedTest, ::testing::ValuesIn(Names()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::ranges::replace_if(
                               name, [](unsigned char c) { return !std::isalnum(c); }, '_');
                           return name;
                         });

// Rows of activations are rounded to int8 where weights are integers, and the largest logits of a
// random model lie close together (decoder_golden_test.cc): the bar is on all models together.
class DecoderQuantisedBFloat16Test : public ::testing::TestWithParam<kernels::Isa> {};

TEST_P(DecoderQuantisedBFloat16Test, AgreesTeacherForced) {
  int all_agreed = 0, all_steps = 0;
  for (const std::string& name : Names()) {
    const LoadedModel quantised(Directory(name)), widened(Directory(name + ".float"));
    int agreed = 0, steps = 0;
    for (const GoldenCase& c : CasesOf(name)) {
      const Decoded expected = Decode(widened, {.dtype = DType::kF32, .threads = 2}, c);
      const Decoded run = Decode(
          quantised, {.dtype = DType::kBF16, .isa = GetParam(), .threads = 2}, c, expected.tokens);
      for (size_t i = 0; i < run.tokens.size(); ++i) agreed += run.tokens[i] == expected.tokens[i];
      steps += static_cast<int>(run.tokens.size());
    }
    const double share = static_cast<double>(agreed) / steps;
    std::cout << name << ": " << share << "\n";
    EXPECT_GE(share, 0.8) << name;
    all_agreed += agreed;
    all_steps += steps;
  }
  EXPECT_GE(static_cast<double>(all_agreed) / all_steps, 0.85);
}

INSTANTIATE_TEST_SUITE_P(Classes, DecoderQuantisedBFloat16Test,
                         ::testing::ValuesIn(WidestOfEachClass(DType::kBF16)),
                         [](const auto& info) { return std::string(kernels::Name(info.param)); });

TEST(QuantisedModels, AreFound) { EXPECT_GE(Names().size(), 7u); }

}  // namespace
}  // namespace switchyard::test
