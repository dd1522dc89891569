#include "router/device/pack_backbone.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <deque>

#include "tests/support/decoder_harness.h"
#include "tests/support/golden.h"

namespace switchyard::router {
namespace {

using ::testing::HasSubstr;

class PackBackboneTest : public ::testing::Test {
 protected:
  absl::StatusOr<PackedBackbone> Pack() {
    return PackBackbone(model_.spec, weights_,
                        {.put = [this](std::span<const std::byte> bytes) -> absl::StatusOr<void*> {
                           if (!full_.ok()) return full_;
                           blocks_.emplace_back(bytes.begin(), bytes.end());
                           return blocks_.back().data();
                         },
                         .positions = 8});
  }
  // lm_head in float32.
  void WidenHead() {
    WeightView& w = weights_.lm_head;
    wide_.resize(static_cast<size_t>(w.out * w.in));
    for (size_t i = 0; i < wide_.size(); ++i) {
      bf16 x;
      std::memcpy(&x, w.data + i * 2, 2);
      wide_[i] = ToFloat(x);
    }
    w.data = reinterpret_cast<const std::byte*>(wide_.data());
    w.dtype = DType::kF32;
  }

  const test::LoadedModel model_{test::LoadGolden("qwen3-moe-tiny").directory};
  RouterWeights weights_ = model_.weights;
  std::vector<float> wide_;
  absl::Status full_;
  std::deque<std::vector<std::byte>> blocks_;
};

TEST_F(PackBackboneTest, WideNumbersThatAreBf16AreTaken) {
  ASSERT_EQ(weights_.lm_head.dtype, DType::kBF16);
  const auto plain = Pack();
  ASSERT_TRUE(plain.ok()) << plain.status();
  const auto size = static_cast<size_t>(model_.spec.vocab * model_.spec.hidden * 2);
  WidenHead();
  const auto wide = Pack();
  ASSERT_TRUE(wide.ok()) << wide.status();
  EXPECT_EQ(std::memcmp(plain->spec.lm_head.tiles, wide->spec.lm_head.tiles, size), 0);
  EXPECT_EQ(plain->layers.size(), static_cast<size_t>(model_.spec.num_layers()));
}

TEST_F(PackBackboneTest, NothingIsRounded) {
  WidenHead();
  wide_[3] = 1.0f / 3;
  const absl::Status status = Pack().status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(status.message(), HasSubstr("lm_head"));
  EXPECT_THAT(status.message(), HasSubstr("weights of float32 that bfloat16 does not hold"));
}

TEST_F(PackBackboneTest, TheLayerAndTheWeightAreNamed) {
  weights_.layers[1].gqa.k.dtype = DType::kF8E4M3;  // without scales
  const absl::Status status = Pack().status();
  EXPECT_THAT(status.message(), HasSubstr("layer 1"));
  EXPECT_THAT(status.message(), HasSubstr("q_proj, k_proj and v_proj"));
}

TEST_F(PackBackboneTest, ADeviceThatIsFullSaysSo) {
  full_ = absl::ResourceExhaustedError("no memory");
  EXPECT_TRUE(absl::IsResourceExhausted(Pack().status()));
}

}  // namespace
}  // namespace switchyard::router
