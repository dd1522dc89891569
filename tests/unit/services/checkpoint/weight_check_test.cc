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

TEST(CheckWeights, EndsWhenNobodyWantsTheRest) {
  const TempDirectory dir;
  WriteFile(dir / "model.safetensors",
            FileOf("{" + Entry("t", "F32", "[2]", 0, 8) + "}", std::string(8, '\0')));
  const auto source = *OpenSafetensors(dir.path());
  ASSERT_TRUE(source->Map({{"t"}}).ok());
  const std::vector<TensorRange> ranges(100, TensorRange{"t"});
  int calls = 0;
  const auto unwanted = [&](uint64_t, uint64_t) { return ++calls == 0; };
  EXPECT_TRUE(absl::IsCancelled(CheckWeights(*source, ranges, unwanted)));
  EXPECT_EQ(calls, 1);
}

// One tensor "t" of two rows of 256 values in memory.
class BlocksSource : public TensorSource {
 public:
  BlocksSource(DType dtype, std::vector<uint8_t> bytes)
      : info_{.name = "t", .dtype = dtype, .shape = {2, 256}, .bytes = bytes.size()},
        bytes_(std::move(bytes)) {}

  const std::vector<std::string>& files() const override { return files_; }
  const std::vector<TensorInfo>& tensors() const override { return none_; }
  const TensorInfo* Find(std::string_view) const override { return &info_; }
  absl::Status Map(const std::vector<TensorRange>&) override { return absl::OkStatus(); }
  absl::StatusOr<MappedTensor> Get(const TensorRange& range) const override {
    const int64_t count = range.count < 0 ? 2 : range.count;
    const std::byte* data = reinterpret_cast<const std::byte*>(bytes_.data());
    return MappedTensor{data + BytesOf(info_.dtype, range.first * 256), info_.dtype, {count, 256}};
  }
  absl::Status Read(int, uint64_t, void*, size_t) const override { return absl::OkStatus(); }

 private:
  TensorInfo info_;
  std::vector<uint8_t> bytes_;
  const std::vector<std::string> files_ = {"m.gguf"};
  const std::vector<TensorInfo> none_;
};

TEST(CheckWeights, FindsEveryScaleOfABlockThatIsNoNumber) {
  struct Scale {
    DType dtype;
    size_t at;  // of its high byte, in a block
    uint8_t bad, good;
  };
  const Scale scales[] = {{DType::kQ8_0, 1, 0x7c, 0x7b},  {DType::kQ4_0, 1, 0xfe, 0xfb},
                          {DType::kMXFP4, 0, 0xff, 0xfe}, {DType::kQ4K, 1, 0x7d, 0x7b},
                          {DType::kQ4K, 3, 0x7c, 0x7b},   {DType::kQ5K, 1, 0x7c, 0x7b},
                          {DType::kQ5K, 3, 0xfc, 0xfb},   {DType::kQ6K, 209, 0x7c, 0x7b}};
  for (const Scale& s : scales) {
    const BlockShape block = BlockOf(s.dtype);
    std::vector<uint8_t> bytes(static_cast<size_t>(BytesOf(s.dtype, 512)), 0x3a);
    for (size_t b = 0; b < 512 / static_cast<size_t>(block.elements); ++b) {
      std::vector<uint8_t> changed = bytes;
      uint8_t& high = changed[b * static_cast<size_t>(block.bytes) + s.at];
      high = s.good;
      EXPECT_EQ(CheckWeights(BlocksSource(s.dtype, changed), {{"t"}}, nullptr), absl::OkStatus());
      high = s.bad;
      const size_t element = b * static_cast<size_t>(block.elements);
      const std::string says = "m.gguf: tensor \"t\": the scale of the block at element " +
                               std::to_string(element) + " is no finite number";
      for (const TensorRange& range :
           {TensorRange{"t"}, TensorRange{"t", element < 256 ? 0 : 1, 1}}) {
        const absl::Status status = CheckWeights(BlocksSource(s.dtype, changed), {range}, nullptr);
        EXPECT_THAT(std::string(ToStd(status.message())), HasSubstr(says));
      }
    }
  }
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
                return true;
              }).ok());
  EXPECT_EQ(last, bytes);
}

}  // namespace
}  // namespace switchyard::checkpoint
