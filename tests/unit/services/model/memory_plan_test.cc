#include "services/model/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>
#include <vector>

#include "services/base/text.h"
#include "services/model/spec_from_hf.h"

namespace switchyard {
namespace {

std::string Root() { return std::getenv("SWITCHYARD_SOURCE_DIR"); }

ModelSpec Golden(const std::string& name) {
  auto spec = LoadSpec(Root() + "/tests/golden/models/" + name);
  EXPECT_TRUE(spec.ok()) << spec.status();
  return *spec;
}

std::vector<int> AllExperts(const ModelSpec& spec) {
  std::vector<int> all(static_cast<size_t>(spec.experts.count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// hidden 64, 3 layers, 4 heads of 16 with 2 KV heads, 8 experts of width 64, top 2, vocab 2560.
TEST(CountParameters, OfMixtralByHand) {
  const uint64_t attention = 64 * 64 + 2 * 32 * 64 + 64 * 64;
  const uint64_t backbone = 2 * 2560 * 64 + 64 + 3 * (2 * 64 + attention + 8 * 64);
  const uint64_t expert = 3 * 64 * 64;
  const ParameterCount count = CountParameters(Golden("mixtral-tiny"));
  EXPECT_EQ(count.total, backbone + 3 * 8 * expert);
  EXPECT_EQ(count.active, backbone + 3 * 2 * expert);
}

// hidden 64, 4 layers, 8 stacked experts of width 32 with biases.
TEST(ExpertBytes, OfStackedExpertsByHand) {
  const ModelSpec spec = Golden("gpt-oss-tiny");
  const uint64_t expert = 64 * 64 + 64 + 32 * 64 + 64;
  const int some[] = {0, 7};
  EXPECT_EQ(ExpertBytes(spec, some, nullptr).total(), 4 * 2 * expert * 2);
}

TEST(WeightBytes, AddUpToTheParameters) {
  for (const char* name : {"deepseek-v2-tiny", "deepseek-v3-noqlora-tiny", "qwen3-moe-gqa3-tiny",
                           "gpt-oss-six-tiny", "mixtral-six-tiny"}) {
    const ModelSpec spec = Golden(name);
    const uint64_t bytes =
        BackboneBytes(spec, nullptr).total() + ExpertBytes(spec, AllExperts(spec), nullptr).total();
    EXPECT_EQ(bytes, CountParameters(spec).total * 2) << name;
  }
}

TEST(WeightBytes, AreSplitByTheDtypeOfEachTensor) {
  const ModelSpec spec = Golden("deepseek-v3-tiny");
  const auto bytes = BackboneBytes(spec, [](std::string_view name) {
    return name.ends_with("correction_bias") ? DType::kF32 : DType::kBF16;
  });
  EXPECT_EQ(bytes.by_dtype.at(DType::kF32), 2u * 32 * 4);  // two MoE layers of 32 experts
  EXPECT_EQ(bytes.by_dtype.size(), 2u);
}

TEST(KvBytesPerToken, MlaKeepsTheLatentAndGqaKeysAndValues) {
  EXPECT_EQ(KvBytesPerToken(Golden("deepseek-v3-tiny"), DType::kBF16), 3u * (32 + 8) * 2);
  EXPECT_EQ(KvBytesPerToken(Golden("mixtral-tiny"), DType::kF32), 3u * 2 * 2 * 16 * 4);
}

TEST(CheckFits, NamesBothNumbers) {
  constexpr uint64_t kGib = uint64_t{1} << 30;
  EXPECT_TRUE(CheckFits(2 * kGib, kGib, 3 * kGib).ok());
  const absl::Status status = CheckFits(2 * kGib, kGib + 1, 3 * kGib);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(CheckFits(UINT64_MAX, UINT64_MAX, 3 * kGib).code(), status.code());
  EXPECT_THAT(std::string(ToStd(CheckFits(2 * kGib, 2 * kGib, 3 * kGib).message())),
              testing::HasSubstr("needs 4.00 GiB (2.00 GiB of weights and 2.00 GiB of KV cache), "
                                 "but 3.00 GiB are available"));
}

}  // namespace
}  // namespace switchyard
