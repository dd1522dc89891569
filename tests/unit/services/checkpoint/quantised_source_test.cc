#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "services/base/text.h"
#include "services/checkpoint/content_digest.h"
#include "services/checkpoint/weight_check.h"
#include "tests/unit/services/checkpoint/safetensors_files.h"

namespace switchyard::checkpoint {
namespace {

using testing::HasSubstr;

constexpr char kInt8[] =
    R"({"quant_method":"compressed-tensors","format":"int-quantized","config_groups":{"a":
       {"weights":{"num_bits":8,"type":"int"}}}})";
constexpr char kInt4[] =
    R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{"a":
       {"weights":{"num_bits":4,"type":"int"}}}})";
constexpr char kInt4Zeros[] =
    R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{"a":
       {"weights":{"num_bits":4,"type":"int","symmetric":false}}}})";

constexpr char kFp8[] = R"({"quant_method":"fp8","weight_block_size":[128,128]})";
constexpr char kMxfp4[] = R"({"quant_method":"mxfp4"})";
constexpr char kGptq[] = R"({"quant_method":"gptq","bits":4})";
constexpr char kAwq[] = R"({"quant_method":"awq","bits":4})";

// A checkpoint in the making.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& quantization) : quantization_(quantization) {}

  template <typename T>
  Checkpoint& Add(const std::string& name, const std::string& dtype, const std::string& shape,
                  std::vector<T> values) {
    while (data_.size() % 8 != 0) data_ += '\0';
    const uint64_t begin = data_.size();
    data_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    header_ += (header_.empty() ? "" : ",") + Entry(name, dtype, shape, begin, data_.size());
    return *this;
  }

  std::unique_ptr<TensorSource> Open() const {
    WriteFile(dir_ / "model.safetensors", FileOf("{" + header_ + "}", data_));
    WriteFile(dir_ / "config.json", "{\"quantization_config\":" + quantization_ + "}");
    auto source = OpenCheckpoint(dir_.path());
    EXPECT_TRUE(source.ok()) << source.status();
    return *std::move(source);
  }

 private:
  const TempDirectory dir_;
  const std::string quantization_;
  std::string header_, data_;
};

std::string MapError(const Checkpoint& checkpoint, const std::string& name = "a.weight") {
  const absl::Status status = checkpoint.Open()->Map({{name}});
  EXPECT_FALSE(status.ok());
  return std::string(ToStd(status.message()));
}

std::vector<int8_t> Bytes(size_t n) { return std::vector<int8_t>(n, 3); }
std::vector<int32_t> Words(size_t n) { return std::vector<int32_t>(n, 0x77777777); }

TEST(QuantisedSource, Int8KeepsItsNameAndGetsScales) {
  Checkpoint checkpoint(kInt8);
  checkpoint.Add("a.weight", "I8", "[2,64]", Bytes(128))
      .Add<float>("a.weight_scale", "F32", "[2,1]", {0.5f, 2})
      .Add<float>("b.weight", "F32", "[2,2]", {1, 2, 3, 4});
  const auto source = checkpoint.Open();
  const TensorInfo* info = source->Find("a.weight");
  ASSERT_NE(info, nullptr);
  EXPECT_EQ(info->dtype, DType::kI8);
  EXPECT_EQ(info->scale_bytes, 8u);
  EXPECT_FALSE(info->scales.empty());
  EXPECT_TRUE(source->Find("b.weight")->scales.empty());
  EXPECT_FALSE(source->Get({"a.weight"}).ok());  // not mapped
  ASSERT_TRUE(source->Map({{"a.weight"}, {"b.weight", 1, 1}}).ok());
  const MappedTensor a = *source->Get({"a.weight", 0, 2});
  const WeightView w = MatrixOf(a);
  EXPECT_EQ(w.out, 2);
  EXPECT_EQ(w.in, 64);
  EXPECT_EQ(w.stride, 64);
  EXPECT_EQ(w.scales.group_columns, 64);
  EXPECT_EQ(reinterpret_cast<const float*>(w.scales.data)[w.scales.row_stride], 2);
  EXPECT_EQ(w.bytes(), 128u + 8);
  EXPECT_FALSE(source->Map({{"a.weight", 1, 1}}).ok());
  EXPECT_TRUE(CheckWeights(*source, {{"a.weight"}}, nullptr).ok());
}

TEST(QuantisedSource, ScalesOfAllOrOfGroups) {
  for (const auto& [shape, groups, rows] :
       {std::tuple{"[]", 1, 2}, {"[1]", 1, 2}, {"[1,1]", 1, 2}, {"[2]", 1, 1}, {"[2,4]", 4, 1}}) {
    Checkpoint checkpoint(kInt8);
    checkpoint.Add("a.weight", "I8", "[2,128]", Bytes(256))
        .Add("a.weight_scale", "BF16", shape,
             std::vector<uint16_t>(static_cast<size_t>(groups * 2 / rows), 0x3f80));
    const auto source = checkpoint.Open();
    ASSERT_TRUE(source->Map({{"a.weight"}}).ok()) << shape;
    const WeightScales scales = source->Get({"a.weight"})->scales;
    EXPECT_EQ(scales.group_columns, 128 / groups) << shape;
    EXPECT_EQ(scales.group_rows, rows) << shape;
    EXPECT_EQ(scales.row_stride, rows == 2 ? 0 : groups) << shape;
  }
}

TEST(QuantisedSource, Int4IsNamedAsTheMatrixThatItIs) {
  Checkpoint checkpoint(kInt4Zeros);
  checkpoint.Add("a.weight_packed", "I32", "[9,8]", Words(72))
      .Add("a.weight_shape", "I64", "[2]", std::vector<int64_t>{9, 64})
      .Add("a.weight_scale", "F16", "[9,2]", std::vector<uint16_t>(18, 0x3c00))
      .Add("a.weight_zero_point", "I32", "[2,2]", Words(4));
  const auto source = checkpoint.Open();
  EXPECT_EQ(source->Find("a.weight")->shape, (std::vector<int64_t>{9, 64}));
  EXPECT_EQ(source->Find("a.weight")->dtype, DType::kI4);
  ASSERT_TRUE(source->Map({{"a.weight"}}).ok());
  const WeightView w = MatrixOf(*source->Get({"a.weight"}));
  EXPECT_EQ(w.scales.group_columns, 32);
  ASSERT_NE(w.scales.zeros, nullptr);
  EXPECT_EQ(w.scales.zero_row_stride, 2);
  EXPECT_EQ(w.bytes(), 9u * 32 + 36 + 16);
  // Listed once, under the name that it is asked for by.
  for (const TensorInfo& t : source->tensors()) EXPECT_NE(t.name, "a.weight_packed");
}

TEST(QuantisedSource, Fp8HasScalesOfBlocks) {
  Checkpoint checkpoint(kFp8);
  checkpoint.Add("a.weight", "F8_E4M3", "[200,300]", Bytes(60000))
      .Add("a.weight_scale_inv", "F32", "[2,3]", std::vector<float>(6, 1));
  const auto source = checkpoint.Open();
  ASSERT_TRUE(source->Map({{"a.weight"}}).ok());
  const WeightView w = MatrixOf(*source->Get({"a.weight"}));
  EXPECT_EQ(w.scales.group_rows, 128);
  EXPECT_EQ(w.scales.row_stride, 3);
  EXPECT_EQ(w.bytes(), 60000u + 24);
  EXPECT_TRUE(CheckWeights(*source, {{"a.weight"}}, nullptr).ok());

  Checkpoint misshapen(kFp8);
  misshapen.Add("a.weight", "F8_E4M3", "[200,300]", Bytes(60000))
      .Add("a.weight_scale_inv", "F32", "[3,2]", std::vector<float>(6, 1));
  EXPECT_THAT(MapError(misshapen),
              HasSubstr("\"a.weight_scale_inv\" has the shape [3, 2], expected [2, 3]"));
  for (int8_t nan : {0x7f, -1}) {
    std::vector<int8_t> codes = Bytes(256);
    codes[77] = nan;
    Checkpoint damaged(kFp8);
    damaged.Add("a.weight", "F8_E4M3", "[2,128]", codes)
        .Add("a.weight_scale_inv", "F32", "[1,1]", std::vector<float>(1, 1));
    const auto opened = damaged.Open();
    ASSERT_TRUE(opened->Map({{"a.weight"}}).ok());
    EXPECT_THAT(std::string(ToStd(CheckWeights(*opened, {{"a.weight"}}, nullptr).message())),
                HasSubstr("tensor \"a.weight\": element 77 is NaN"));
  }
}

TEST(QuantisedSource, Mxfp4IsHadExpertByExpert) {
  Checkpoint checkpoint(kMxfp4);
  std::vector<int8_t> exponents(3 * 4 * 2, 127);
  exponents[2 * 8 + 3] = 120;
  checkpoint.Add("x.gate_up_proj_blocks", "U8", "[3,4,2,16]", Bytes(3 * 4 * 2 * 16))
      .Add("x.gate_up_proj_scales", "U8", "[3,4,2]", exponents);
  const auto source = checkpoint.Open();
  EXPECT_EQ(source->Find("x.gate_up_proj")->shape, (std::vector<int64_t>{3, 4, 64}));
  ASSERT_TRUE(source->Map({{"x.gate_up_proj", 2, 1}}).ok());
  const MappedTensor expert = *source->Get({"x.gate_up_proj", 2, 1});
  EXPECT_EQ(expert.shape, (std::vector<int64_t>{1, 4, 64}));
  const WeightView w = MatrixOf(expert);
  EXPECT_EQ(w.out, 4);
  EXPECT_EQ(w.in, 64);
  EXPECT_EQ(w.scales.data[3], std::byte{120});
  EXPECT_TRUE(CheckWeights(*source, {{"x.gate_up_proj", 2, 1}}, nullptr).ok());

  exponents[2 * 8 + 3] = -1;  // 255: no number
  Checkpoint damaged(kMxfp4);
  damaged.Add("x.gate_up_proj_blocks", "U8", "[3,4,2,16]", Bytes(3 * 4 * 2 * 16))
      .Add("x.gate_up_proj_scales", "U8", "[3,4,2]", exponents);
  const auto opened = damaged.Open();
  ASSERT_TRUE(opened->Map({{"x.gate_up_proj", 2, 1}}).ok());
  EXPECT_THAT(
      std::string(ToStd(CheckWeights(*opened, {{"x.gate_up_proj", 2, 1}}, nullptr).message())),
      HasSubstr("the scale of row 1, column 32 is NaN"));

  for (const auto& [blocks, scales, n] : {std::tuple{"[3,4,2,16]", "[3,4,1]", 384},
                                          {"[3,4,32]", "[3,4,2]", 384},
                                          {"[3,4,4,8]", "[3,4,4]", 384}}) {
    Checkpoint wrong(kMxfp4);
    wrong.Add("x.gate_up_proj_blocks", "U8", blocks, Bytes(static_cast<size_t>(n)))
        .Add("x.gate_up_proj_scales", "U8", scales,
             Bytes(std::string(scales) == "[3,4,1]"   ? 12
                   : std::string(scales) == "[3,4,2]" ? 24
                                                      : 48));
    const auto wrong_source = wrong.Open();
    const TensorInfo* info = nullptr;
    for (const TensorInfo& t : wrong_source->tensors()) {
      if (t.name.starts_with("x.gate_up_proj") && !t.name.ends_with("_scales")) info = &t;
    }
    ASSERT_NE(info, nullptr);
    EXPECT_FALSE(wrong_source->Map({{info->name}}).ok()) << blocks;
  }
}

TEST(QuantisedSource, GptqAndAwqAreTransposed) {
  for (const char* config : {kGptq, kAwq}) {
    const bool gptq = config == kGptq;
    const auto made = [&](const char* zeros, std::vector<int32_t> order) {
      auto c = std::make_unique<Checkpoint>(config);
      c->Add("a.qweight", "I32", gptq ? "[8,16]" : "[64,2]", Words(128))
          .Add("a.scales", "F16", "[2,16]", std::vector<uint16_t>(32, 0x3c00))
          .Add("a.qzeros", "I32", zeros, Words(4));
      if (!order.empty()) c->Add("a.g_idx", "I32", "[64]", order);
      return c;
    };
    std::vector<int32_t> order(64);
    for (size_t k = 0; k < 64; ++k) order[k] = static_cast<int32_t>(k / 32);
    const auto checkpoint = made("[2,2]", order);
    const auto source = checkpoint->Open();
    EXPECT_EQ(source->Find("a.weight")->shape, (std::vector<int64_t>{16, 64}));
    ASSERT_TRUE(source->Map({{"a.weight"}}).ok());
    const WeightView w = MatrixOf(*source->Get({"a.weight"}));
    EXPECT_EQ(w.packing, gptq ? Packing::kGptq : Packing::kAwq);
    EXPECT_EQ(w.out, 16);
    EXPECT_EQ(w.in, 64);
    EXPECT_EQ(w.stride, gptq ? 16 : 2);
    EXPECT_EQ(w.scales.group_columns, 32);
    EXPECT_EQ(w.scales.column_stride, 16);
    EXPECT_EQ(w.scales.zero_column_stride, 2);
    EXPECT_EQ(w.scales.zero_offset, gptq ? 1 : 0);
    EXPECT_EQ(w.bytes(), 512u + 64 + 16);

    EXPECT_THAT(MapError(*made("[1,4]", {})),
                HasSubstr("\"a.qzeros\" has the shape [1, 4], expected [2, 2]"));
    std::swap(order[3], order[40]);
    if (gptq) {
      EXPECT_THAT(MapError(*made("[2,2]", order)),
                  HasSubstr("\"a.g_idx\": column 3 is of group 1"));
    }
  }
}

TEST(QuantisedSource, WhatIsWrongIsNamed) {
  const auto scale = [](Checkpoint& c, const char* shape, size_t n) -> Checkpoint& {
    return c.Add("a.weight_scale", "F32", shape, std::vector<float>(n, 1));
  };
  Checkpoint none(kInt8);
  none.Add("a.weight", "I8", "[2,64]", Bytes(128));
  EXPECT_THAT(MapError(none),
              HasSubstr("\"a.weight\" is quantised, but has no \"a.weight_scale\""));
  for (const auto& [shape, n] :
       {std::pair{"[3,1]", 3}, {"[2,3]", 6}, {"[2,4]", 8}, {"[2,1,1]", 2}, {"[2,0]", 0}}) {
    Checkpoint misshapen(kInt8);
    misshapen.Add("a.weight", "I8", "[2,64]", Bytes(128));
    EXPECT_THAT(MapError(scale(misshapen, shape, static_cast<size_t>(n))),
                HasSubstr("\"a.weight_scale\" has the shape "))
        << shape;
  }
  Checkpoint integers(kInt8);
  integers.Add("a.weight", "I8", "[2,64]", Bytes(128))
      .Add("a.weight_scale", "I8", "[2,1]", Bytes(2));
  EXPECT_THAT(MapError(integers),
              HasSubstr("\"a.weight_scale\" has dtype int8; supported: float32"));
  Checkpoint vector(kInt8);
  vector.Add("a.weight", "I8", "[64]", Bytes(64));
  EXPECT_THAT(MapError(vector), HasSubstr("\"a.weight\" has the shape [64], expected a matrix"));

  Checkpoint zeros(kInt4Zeros);
  zeros.Add("a.weight_packed", "I32", "[2,8]", Words(16));
  EXPECT_THAT(MapError(scale(zeros, "[2,2]", 4)), HasSubstr("has no \"a.weight_zero_point\""));
  zeros.Add("a.weight_zero_point", "I32", "[2,2]", Words(4));
  EXPECT_THAT(MapError(zeros),
              HasSubstr("\"a.weight_zero_point\" has the shape [2, 2], expected [1, 2]"));

  Checkpoint ordered(kInt4);
  ordered.Add("a.weight_packed", "I32", "[2,8]", Words(16))
      .Add("a.weight_g_idx", "I32", "[64]", Words(64));
  EXPECT_THAT(MapError(scale(ordered, "[2,2]", 4)), HasSubstr("a.weight_g_idx"));
  Checkpoint both(kInt4);
  both.Add("a.weight_packed", "I32", "[2,8]", Words(16)).Add("a.weight", "I8", "[2,8]", Bytes(16));
  EXPECT_THAT(MapError(scale(both, "[2,2]", 4)),
              HasSubstr("both \"a.weight_packed\" and \"a.weight\""));
}

TEST(QuantisedSource, ScalesAreChecked) {
  for (const auto& [bits, says] :
       {std::pair{0x7f80u, "infinite"}, {0x7fc0u, "NaN"}, {0u, "zero"}}) {
    Checkpoint checkpoint(kInt8);
    std::vector<uint16_t> scales(6, 0x3f80);
    scales[3] = static_cast<uint16_t>(bits);
    checkpoint.Add("a.weight", "I8", "[3,64]", Bytes(192))
        .Add("a.weight_scale", "BF16", "[3,2]", scales);
    const auto source = checkpoint.Open();
    ASSERT_TRUE(source->Map({{"a.weight"}}).ok());
    EXPECT_THAT(std::string(ToStd(CheckWeights(*source, {{"a.weight"}}, nullptr).message())),
                HasSubstr(std::string("\"a.weight\": the scale of row 1, column 32 is ") + says));
  }
}

TEST(QuantisedSource, TheDigestTellsHowItIsQuantised) {
  const auto digest = [](const char* config) {
    Checkpoint checkpoint(config);
    checkpoint.Add("a.weight_packed", "I32", "[8,8]", Words(64))
        .Add("a.weight_scale", "F16", "[8,2]", std::vector<uint16_t>(16, 0x3c00))
        .Add("a.weight_zero_point", "I32", "[1,2]", Words(2));
    return *ContentDigest(*checkpoint.Open());
  };
  EXPECT_EQ(digest(kInt4), digest(kInt4));
  EXPECT_NE(digest(kInt4), digest(kInt4Zeros));
}

}  // namespace
}  // namespace switchyard::checkpoint
