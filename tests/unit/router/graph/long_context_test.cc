// Contexts of more than 32K tokens, beyond what the models were made for: the golden models with a
// config.json that declares them, one for each scaling of positions.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/support/decoder_harness.h"
#include "tests/support/golden.h"

namespace switchyard::test {
namespace {

using Chunk = DecoderHarness::Chunk;
using Sequence = DecoderHarness::Sequence;
using nlohmann::json;

struct Case {
  const char* name;
  const char* model;
  const char* config;  // what differs
};

// Two layers of gpt-oss, of which one sees everything; windows keep the others cheap.
constexpr Case kCases[] = {
    {"yarn", "gpt-oss-tiny",
     R"({"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"],
         "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
         "original_max_position_embeddings": 4096, "truncate": false}})"},
    {"llama3", "mixtral-llama3-f16-tiny",
     R"({"num_hidden_layers": 1, "sliding_window": 2048,
         "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}})"},
    {"linear", "qwen3-moe-linear-f32-tiny",
     R"({"num_hidden_layers": 2, "use_sliding_window": true, "sliding_window": 2048,
         "rope_scaling": {"type": "linear", "factor": 4.0}})"},
};

// The golden model's files with another config.json.
std::string Changed(const Case& c) {
  namespace fs = std::filesystem;
  const fs::path from = fs::absolute(SourcePath(std::string("tests/golden/models/") + c.model));
  const fs::path to = fs::path(testing::TempDir()) / (std::string("long-context-") + c.name);
  fs::remove_all(to);
  fs::create_directories(to);
  for (const auto& entry : fs::directory_iterator(from)) {
    if (entry.path().filename() == "config.json") continue;
    fs::create_symlink(entry.path(), to / entry.path().filename());
  }
  std::ifstream in(from / "config.json");
  json config = json::parse(in);
  config.update(json::parse(c.config));
  config["max_position_embeddings"] = 65536;
  std::ofstream(to / "config.json") << config;
  return to;
}

class LongContextTest : public ::testing::TestWithParam<Case> {};

// Of a sequence whose tokens came in steps of all sizes the last ones are computed in several ways.
TEST_P(LongContextTest, ChunksDoNotMatterBeyondThirtyTwoThousandTokens) {
  constexpr size_t kHead = 32800, kTail = 200;  // the head ends with a block
  const LoadedModel model(Changed(GetParam()));
  ASSERT_EQ(model.spec.max_position, 65536);
  std::vector<int32_t> tokens;
  for (uint32_t seed = 7; tokens.size() < kHead + kTail;) {
    seed = seed * 1664525u + 1013904223u;
    tokens.push_back(static_cast<int32_t>((seed >> 8) % static_cast<uint32_t>(model.spec.vocab)));
  }
  const std::span<const int32_t> all(tokens);
  DecoderHarness harness(
      model, {.dtype = DType::kBF16, .kv_dtype = DType::kI8, .threads = 2, .kv_blocks = 4096});
  Sequence head;
  for (size_t at = 0, step = 1000; at < kHead; at += step, step = 1000 + (step * 7) % 1013) {
    step = std::min(step, kHead - at);
    harness.Step(
        Chunk{.sequence = &head, .tokens = all.subspan(at, step), .wanted = Chunk::Logits::kNone});
  }
  const auto logits_of = [&](const std::vector<size_t>& cuts) {
    Sequence tail = head;  // the same blocks, then its own
    std::vector<float> logits;
    size_t at = kHead;
    for (const size_t cut : cuts) {
      const router::StepResult& result = harness.Step(
          Chunk{.sequence = &tail, .tokens = all.subspan(at, cut), .wanted = Chunk::Logits::kAll});
      logits.insert(logits.end(), result.logits,
                    result.logits + cut * static_cast<size_t>(model.spec.vocab));
      at += cut;
    }
    EXPECT_EQ(at, tokens.size());
    return logits;
  };
  const std::vector<float> whole = logits_of({kTail});
  for (const float logit : whole) ASSERT_TRUE(std::isfinite(logit));
  const std::vector<float> cut = logits_of({1, 31, 1, 67, 32, 60, 5, 3});
  EXPECT_EQ(std::memcmp(whole.data(), cut.data(), whole.size() * sizeof(float)), 0);
  // A token sees where it stands: the same tokens elsewhere say something else.
  Sequence start;
  const router::StepResult& elsewhere = harness.Step(
      Chunk{.sequence = &start, .tokens = all.last(kTail), .wanted = Chunk::Logits::kAll});
  EXPECT_NE(std::memcmp(whole.data(), elsewhere.logits, whole.size() * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(Scalings, LongContextTest, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace switchyard::test
