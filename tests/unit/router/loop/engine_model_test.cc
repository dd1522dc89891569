// The engine over real models: what is shared, found again, evicted or speculated changes no bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>

#include "router/loop/engine.h"
#include "tests/support/decoder_harness.h"
#include "tests/support/golden.h"
#include "tests/unit/router/loop/engine_harness.h"

namespace switchyard::router {
namespace {

const test::LoadedModel& ModelOf(const std::string& name) {
  static std::map<std::string, std::unique_ptr<test::LoadedModel>> models;
  auto& model = models[name];
  if (model == nullptr)
    model = std::make_unique<test::LoadedModel>(test::LoadGolden(name).directory);
  return *model;
}

struct Counter : EngineObserver {
  void OnPreempted() override { ++preemptions; }
  void OnPrefixLookup(int64_t, int64_t found) override { hits += found; }
  int64_t preemptions = 0, hits = 0;
};

// One of each kind of attention; windows among them.
class EngineModelTest : public testing::TestWithParam<const char*> {
 protected:
  static constexpr int kRequests = 8;

  EngineRequest Ask(uint64_t id) const {
    EngineRequest request;
    request.request = id;
    const int64_t vocab = model_.spec.vocab;
    // Three prefixes of two blocks, then something of their own; two of the requests are equal.
    const auto own = static_cast<int64_t>(id == 7 ? 4 : id);
    for (int64_t i = 0; i < 64 + 9 * own; ++i) {
      const int64_t seed = i < 64 ? own % 3 : own;
      request.prompt.push_back(static_cast<int32_t>((seed * 31 + i * i * 7 + i) % vocab));
    }
    request.max_tokens = 40;
    request.sampling.ignore_eos = true;
    request.sampling.temperature = id % 2 == 0 ? 0.9f : 0;
    request.sampling.seed = id;
    request.top_logprobs = 0;
    request.n = id == 4 ? 3 : 1;
    request.cache_salt = id == 6 ? "other" : "";
    return request;
  }

  std::map<std::pair<uint64_t, int>, Output> Run(const EngineOptions& options, bool one_by_one) {
    test::DecoderHarness harness(model_, {.dtype = DType::kBF16, .kv_blocks = options.kv_blocks});
    auto sink = std::make_shared<CollectingSink>();
    {
      Engine engine(options, harness.decoder(), &counter_);
      for (uint64_t id = 1; id <= kRequests; ++id) {
        EngineRequest request = Ask(id);
        request.sink = sink;
        const int n = request.n;
        EXPECT_TRUE(engine.Submit(std::move(request)).ok());
        if (one_by_one) sink->AwaitEnd(id, n);
      }
      for (uint64_t id = 1; id <= kRequests; ++id) sink->AwaitEnd(id, Ask(id).n);
    }
    std::map<std::pair<uint64_t, int>, Output> outputs;
    for (uint64_t id = 1; id <= kRequests; ++id) {
      for (int c = 0; c < Ask(id).n; ++c) outputs[{id, c}] = sink->Of(id, c);
    }
    return outputs;
  }

  void ExpectSame(const EngineOptions& options, bool one_by_one, const std::string& how) {
    counter_ = {};
    const auto outputs = Run(options, one_by_one);
    for (const auto& [key, output] : outputs) {
      const Output& base = base_[key];
      ASSERT_EQ(output.finishes, std::vector{Finish::kLength}) << how << ": " << output.error;
      EXPECT_EQ(output.tokens, base.tokens) << how << ", request " << key.first;
      EXPECT_EQ(output.logprobs, base.logprobs) << how << ", request " << key.first;
    }
  }

  void SetUp() override {
    options_ = {.max_model_len = 192, .kv_blocks = 96};
    EngineOptions plain = options_;
    plain.prefix_cache = false;
    base_ = Run(plain, true);
    EXPECT_EQ(counter_.hits, 0);
  }

  const test::LoadedModel& model_ = ModelOf(GetParam());
  EngineOptions options_;
  Counter counter_;
  std::map<std::pair<uint64_t, int>, Output> base_;
};

TEST_P(EngineModelTest, APrefixCacheChangesNoBit) {
  ExpectSame(options_, true, "one by one");
  EXPECT_GE(counter_.hits, 64 * 4);
  ExpectSame(options_, false, "at once");
  EngineOptions chunks = options_;
  chunks.max_batch_tokens = 17;
  ExpectSame(chunks, false, "at once, in chunks");
  EXPECT_GT(counter_.hits, 0);
}

TEST_P(EngineModelTest, NeitherDoPreemptionAndEviction) {
  EngineOptions tight = options_;
  tight.kv_blocks = 7;
  ExpectSame(tight, false, "seven blocks");
  EXPECT_GT(counter_.preemptions, 0);
  EXPECT_GT(counter_.hits, 0);
  tight.prefix_cache = false;
  ExpectSame(tight, false, "seven blocks, no cache");
  EXPECT_EQ(counter_.hits, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, EngineModelTest,
                         testing::Values("tiny-r1", "qwen3-moe-tiny", "mixtral-swa-tiny",
                                         "gpt-oss-tiny"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace switchyard::router
