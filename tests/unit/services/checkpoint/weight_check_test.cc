#include "services/checkpoint/weight_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "services/base/text.h"
#include "tests/unit/services/checkpoint/safetensors_files.h"

namespace switchyard::checkpoint {
namespace {

using testing::HasSubstr;

// One tensor "t" [5, 3] of `dtype` from the bits of its elements.
template <typename T>
std::string Check(const std::string& dtype, std::vector<T> elements, const TensorRange& range) {
  const TempDirectory dir;
  elements.resize(15);
  const std::string data(reinterpret_cast<const char*>(elements.data()), 15 * sizeof(T));
  WriteFile(dir / "model.safetensors",
            FileOf("{" + Entry("t", dtype, "[5,3]", 0, data.size()) + "}", data));
  const auto source = *OpenSafetensors(dir.path());
  EXPECT_TRUE(source->Map({range}).ok());
  return std::string(ToStd(CheckWeights(*source, {range}, nullptr).message()));
}

TEST(CheckWeights, FiniteExtremesPass) {
  EXPECT_EQ(Check<float>("F32",
                         {std::numeric_limits<float>::max(), -1e-45f, -0.f,
                          std::numeric_limits<float>::lowest()},
                         {"t"}),
            "");
  EXPECT_EQ(Check<uint16_t>("BF16", {0x7f7f, 0xff7f, 0x0001, 0x8000}, {"t"}), "");
  EXPECT_EQ(Check<uint16_t>("F16", {0x7bff, 0xfbff, 0x0001, 0x8000}, {"t"}), "");
}

// Every element of every dtype in turn, with every non-finite pattern.
TEST(CheckWeights, FindsEveryNonFiniteElement) {
  for (size_t i = 0; i < 15; ++i) {
    const std::string says = "tensor \"t\": element " + std::to_string(i) + " is ";
    for (uint16_t bits : {0x7f80, 0xff80, 0x7fc0, 0xff81}) {
      std::vector<uint16_t> elements(15, 0x3f80);
      elements[i] = bits;
      const bool infinite = (bits & 0x7f) == 0;
      EXPECT_THAT(Check("BF16", elements, {"t"}), HasSubstr(says + (infinite ? "inf" : "NaN")));
    }
    for (uint16_t bits : {0x7c00, 0xfc00, 0x7e00, 0xfc01}) {
      std::vector<uint16_t> elements(15, 0x3c00);
      elements[i] = bits;
      EXPECT_THAT(Check("F16", elements, {"t"}), HasSubstr(says));
    }
    for (uint32_t bits : {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xff800001u}) {
      std::vector<uint32_t> elements(15, 0x3f800000u);
      elements[i] = bits;
      EXPECT_THAT(Check("F32", elements, {"t"}), HasSubstr(says));
    }
  }
}

TEST(CheckWeights, ReadsOnlyItsRowsAndCountsElementsFromTheTensorsStart) {
  std::vector<uint16_t> elements(15, 0);
  elements[7] = 0x7fc0;  // row 2
  EXPECT_EQ(Check("BF16", elements, {"t", 0, 2}), "");
  EXPECT_EQ(Check("BF16", elements, {"t", 3, 2}), "");
  EXPECT_THAT(Check("BF16", elements, {"t", 2, 1}), HasSubstr("element 7 is NaN"));
}

TEST(CheckWeights, RefusesOtherDtypesByName) {
  EXPECT_THAT(Check<int16_t>("I16", {}, {"t"}), HasSubstr("\"t\": dtype int16 is not supported"));
}

TEST(CheckWeights, ReportsProgressUpToTheTotal) {
  const auto source = *OpenSafetensors(std::string(std::getenv("SWITCHYARD_SOURCE_DIR")) +
                                       "/tests/golden/models/deepseek-v3-nonorm-tiny");
  std::vector<TensorRange> all;
  uint64_t bytes = 0;
  for (const TensorInfo& t : source->tensors()) {
    all.push_back({t.name});
    bytes += t.bytes;
  }
  ASSERT_TRUE(source->Map(all).ok());
  uint64_t last = 0;
  ASSERT_TRUE(CheckWeights(*source, all, [&](uint64_t done, uint64_t total) {
                EXPECT_GT(done, last);
                EXPECT_EQ(total, bytes);
                last = done;
              }).ok());
  EXPECT_EQ(last, bytes);
}

}  // namespace
}  // namespace switchyard::checkpoint
