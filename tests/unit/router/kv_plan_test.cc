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
