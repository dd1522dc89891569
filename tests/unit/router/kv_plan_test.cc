#include "router/kv_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "router/kv/kv_storage.h"

namespace switchyard::router {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ModelSpec Spec() {
  ModelSpec spec;
  spec.attention.kind = AttentionKind::kGqa;
  spec.attention.kv_heads = 2;
  spec.attention.head_dim = 16;
  spec.max_position = 4096;
  spec.layers.resize(4);
  return spec;
}
// 64 elements of 2 bytes a token and layer.
constexpr int64_t kBlockBytes = 64 * 2 * 4 * kBlockTokens;
constexpr uint64_t kGiB = uint64_t{1} << 30;

std::string Error(const KvRequest& request) {
  return std::string(PlanKv(Spec(), DType::kBF16, request).status().message());
}

TEST(PlanKv, TakesHalfOfWhatIsFreeBesideTheWeights) {
  ASSERT_EQ(KvStorage::BlockBytes(Spec(), DType::kBF16), kBlockBytes);
  const auto plan =
      PlanKv(Spec(), DType::kBF16, {.weight_bytes = 2 * kGiB, .available_bytes = 6 * kGiB});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->blocks, static_cast<int64_t>(2 * kGiB) / kBlockBytes);
  EXPECT_EQ(plan->bytes, plan->blocks * kBlockBytes);
  EXPECT_EQ(plan->max_model_len, 4096);
}

TEST(PlanKv, LengthIsBoundedByTheBlocks) {
  const KvRequest request{.kv_bytes = 3 * kBlockBytes + 5, .available_bytes = kGiB};
  const auto plan = PlanKv(Spec(), DType::kBF16, request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->blocks, 3);
  EXPECT_EQ(plan->max_model_len, 3 * kBlockTokens);
}

TEST(PlanKv, WhatIsBehindAWindowTakesNothing) {
  ModelSpec spec = Spec();
  for (size_t i = 0; i < 4; i += 2) spec.layers[i].window = 64;
  ASSERT_EQ(KvStorage::BlockBytes(spec, DType::kBF16), kBlockBytes / 2);
  // A window and a chunk are 127 tokens: in the layers that have one, five blocks at most.
  const KvRequest request{.kv_bytes = 15 * kBlockBytes / 2, .available_bytes = kGiB};
  const auto half = PlanKv(spec, DType::kBF16, request);
  ASSERT_TRUE(half.ok()) << half.status();
  EXPECT_EQ(half->blocks, 15);
  EXPECT_EQ(half->tokens, 7 * kBlockTokens);
  EXPECT_EQ(half->max_model_len, 10 * kBlockTokens);
  spec.layers[1].window = spec.layers[3].window = 64;
  const auto none =
      PlanKv(spec, DType::kBF16, {.kv_bytes = 5 * kBlockBytes, .available_bytes = kGiB});
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->blocks, 5);
  EXPECT_EQ(none->tokens, 5 * kBlockTokens);
  EXPECT_EQ(none->max_model_len, 4096);
}

TEST(PlanKv, WhatDoesNotFitIsRefusedWithBothNumbers) {
  EXPECT_THAT(Error({.kv_bytes = int64_t{900} << 40, .available_bytes = 6 * kGiB}),
              AllOf(HasSubstr("--kv-memory 900.0 TiB"), HasSubstr("6.00 GiB")));
  EXPECT_THAT(Error({.weight_bytes = 8 * kGiB, .available_bytes = 6 * kGiB}),
              AllOf(HasSubstr("8.00 GiB"), HasSubstr("6.00 GiB")));
  EXPECT_THAT(Error({.kv_bytes = kBlockBytes, .max_model_len = 33, .available_bytes = kGiB}),
              AllOf(HasSubstr("33 tokens needs 32.0 KiB"), HasSubstr("there are 16.0 KiB")));
  EXPECT_THAT(Error({.kv_bytes = 100, .available_bytes = kGiB}), HasSubstr("100 bytes"));
  EXPECT_THAT(Error({.max_model_len = 5000, .available_bytes = kGiB}),
              AllOf(HasSubstr("5000"), HasSubstr("4096")));
}

TEST(PlanKv, NothingIsRefusedWhereMemoryIsUnknown) {
  EXPECT_TRUE(PlanKv(Spec(), DType::kF32, {.weight_bytes = 8 * kGiB}).ok());
}

}  // namespace
}  // namespace switchyard::router
