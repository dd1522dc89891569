// The engine over real models: what is shared, found again, evicted or speculated changes no bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>

#include "router/draft/ngram_drafter.h"
#include "router/kv/kv_tables.h"
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
  void OnDrafts(int64_t guessed, int64_t right) override { drafts += guessed, accepted += right; }
  void OnPreempted() override { ++preemptions; }
  void OnPrefixLookup(int64_t, int64_t found) override { hits += found; }
  int64_t preemptions = 0, hits = 0, drafts = 0, accepted = 0;
};

using Outputs = std::map<std::pair<uint64_t, int>, Output>;

// Knows what the baseline said after these tokens, and errs at every fifth position.
class Prophet : public Drafter {
 public:
  // Both outlive it; `prompts` by request.
  Prophet(const Outputs& outputs, const std::map<uint64_t, std::vector<int32_t>>& prompts)
      : outputs_(outputs), prompts_(prompts) {}

  void Draft(const DraftTask& task, std::vector<int32_t>* drafts) override {
    drafts->clear();
    for (const auto& [key, output] : outputs_) {
      std::vector<int32_t> whole = prompts_.at(key.first);
      whole.insert(whole.end(), output.tokens.begin(), output.tokens.end());
      if (whole.size() <= task.tokens.size()) continue;
      if (!std::equal(task.tokens.begin(), task.tokens.end(), whole.begin())) continue;
      for (size_t i = task.tokens.size(); i < whole.size(); ++i) {
        if (static_cast<int>(drafts->size()) == task.most) return;
        drafts->push_back(i % 5 == 0 ? (whole[i] ^ 1) : whole[i]);
      }
      return;
    }
  }

 private:
  const Outputs& outputs_;
  const std::map<uint64_t, std::vector<int32_t>>& prompts_;
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

  Outputs Run(const EngineOptions& options, bool one_by_one) {
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
    Outputs outputs;
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

  bool AnyLayerSeesAll() const { return KvLayoutOf(model_.spec).groups_that_see_all() > 0; }
  // Enough for the longest request, too few for two: it has six blocks in each group, and four at a
  // time where there is a window.
  int64_t FewBlocks() const { return AnyLayerSeesAll() ? 7 * KvLayoutOf(model_.spec).groups() : 5; }

  void SetUp() override {
    options_ = {.max_model_len = 192, .kv_blocks = 96};
    EngineOptions plain = options_;
    plain.prefix_cache = false;
    base_ = Run(plain, true);
    for (uint64_t id = 1; id <= kRequests; ++id) prompts_[id] = Ask(id).prompt;
    EXPECT_EQ(counter_.hits, 0);
  }

  const test::LoadedModel& model_ = ModelOf(GetParam());
  EngineOptions options_;
  Counter counter_;
  Outputs base_;
  std::map<uint64_t, std::vector<int32_t>> prompts_;
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
  tight.kv_blocks = FewBlocks();
  ExpectSame(tight, false, "few blocks");
  if (AnyLayerSeesAll()) {
    EXPECT_GT(counter_.hits, 0);
    EXPECT_GT(counter_.preemptions, 0);
  } else {  // who is admitted has room for all that its windows will hold
    EXPECT_EQ(counter_.preemptions, 0);
  }
  tight.prefix_cache = false;
  ExpectSame(tight, false, "few blocks, no cache");
  EXPECT_EQ(counter_.hits, 0);
}

TEST_P(EngineModelTest, NorDoesSpeculation) {
  EngineOptions guessing = options_;
  guessing.max_drafts = 4;
  guessing.make_drafter = [] { return std::make_unique<NgramDrafter>(); };
  ExpectSame(guessing, false, "look-up");
  // Tokens of random weights seldom repeat; guesses that are mostly right do not wait for that.
  guessing.make_drafter = [this] { return std::make_unique<Prophet>(base_, prompts_); };
  counter_ = {};
  ExpectSame(guessing, false, "prophet");
  EXPECT_GT(counter_.accepted, 100);
  EXPECT_GT(counter_.drafts, counter_.accepted);
  guessing.kv_blocks = FewBlocks();
  ExpectSame(guessing, false, "prophet, few blocks");
  EXPECT_GT(counter_.accepted, 0);
}

// Each request behind what another router made of it: rows that decoding computed are a prompt's
// now.
TEST_P(EngineModelTest, NorDoesAnotherRoutersBeginning) {
  test::DecoderHarness harness(model_, {.dtype = DType::kBF16, .kv_blocks = options_.kv_blocks});
  options_.max_drafts = 3;
  options_.make_drafter = [] { return std::make_unique<NgramDrafter>(); };
  for (const size_t cut : {1, 17, 39}) {
    auto sink = std::make_shared<CollectingSink>();
    Engine engine(options_, harness.decoder(), nullptr);
    const auto begun = [&](int choice) {  // of several, each from elsewhere
      return static_cast<std::ptrdiff_t>(cut) - std::min<std::ptrdiff_t>(choice, cut);
    };
    for (uint64_t id = 1; id <= kRequests; ++id) {
      EngineRequest request = Ask(id);
      request.sink = sink;
      for (int c = 0; c < request.n; ++c) {
        const std::vector<int32_t>& all = base_[{id, c}].tokens;
        request.choices.push_back({.tokens = {all.begin(), all.begin() + begun(c)}});
      }
      ASSERT_TRUE(engine.Submit(std::move(request)).ok());
    }
    for (uint64_t id = 1; id <= kRequests; ++id) sink->AwaitEnd(id, Ask(id).n);
    for (const auto& [key, whole] : base_) {
      const std::ptrdiff_t from = begun(key.second);
      const Output rest = sink->Of(key.first, key.second);
      const std::vector<int32_t> tokens(whole.tokens.begin() + from, whole.tokens.end());
      const std::vector<float> logprobs(whole.logprobs.begin() + from, whole.logprobs.end());
      EXPECT_EQ(rest.tokens, tokens) << "cut at " << cut << ", request " << key.first;
      EXPECT_EQ(rest.logprobs, logprobs) << "cut at " << cut << ", request " << key.first;
    }
  }
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
