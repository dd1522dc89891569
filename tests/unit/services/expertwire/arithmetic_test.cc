#include "services/expertwire/arithmetic.h"

#include <gtest/gtest.h>

#include "services/model/spec_from_hf.h"
#include "tests/support/golden.h"

namespace switchyard::expertwire {
namespace {

std::string Arithmetic(const std::string& directory, DType dtype, kernels::Isa isa) {
  const auto spec = LoadSpec(directory);
  const auto source = checkpoint::OpenCheckpoint(directory);
  EXPECT_TRUE(spec.ok() && source.ok()) << directory;
  return ExpertArithmetic(*spec, **source, dtype, isa);
}
std::string Quantised(const std::string& name, DType dtype, kernels::Isa isa) {
  return Arithmetic(std::string(SY_QUANTISED_MODELS) + "/" + name, dtype, isa);
}

TEST(ExpertArithmetic, OfWeightsInIntegersIsTheSameEverywhere) {
  for (const char* name : {"olmoe-tiny.int8-32", "gpt-oss-tiny.mxfp4", "mixtral-tiny.awq"}) {
    EXPECT_EQ(Quantised(name, DType::kBF16, kernels::Isa::kAmx), "bf16") << name;
    EXPECT_EQ(Quantised(name, DType::kBF16, kernels::Isa::kAvx2), "bf16") << name;
    EXPECT_EQ(Quantised(name, DType::kF32, kernels::Isa::kAmx), "f32") << name;
  }
}

TEST(ExpertArithmetic, OfAnyOtherExpertIsTheClass) {
  const std::string plain = test::SourcePath("tests/golden/models/olmoe-tiny");
  EXPECT_EQ(Arithmetic(plain, DType::kBF16, kernels::Isa::kAmx), "bf16-amx");
  EXPECT_EQ(Arithmetic(plain, DType::kBF16, kernels::Isa::kAvx2), "bf16-fma");
  EXPECT_EQ(Quantised("deepseek-v3-tiny.fp8", DType::kBF16, kernels::Isa::kAmx), "bf16-amx");
  // Its down projections are too narrow to be quantised.
  EXPECT_EQ(Quantised("deepseek-v3-tiny.int8", DType::kBF16, kernels::Isa::kAmx), "bf16-amx");
}

// [experts, in, out] is multiplied as float32 is.
TEST(ExpertArithmetic, OfStackedExpertsIsTheSameEverywhere) {
  const std::string stacked = test::SourcePath("tests/golden/models/gpt-oss-tiny");
  EXPECT_EQ(Arithmetic(stacked, DType::kBF16, kernels::Isa::kAmx), "bf16");
}

}  // namespace
}  // namespace switchyard::expertwire
