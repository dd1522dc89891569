#include "services/model/fingerprint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>

#include "services/model/spec_from_hf.h"

namespace switchyard {
namespace {

ModelSpec TinyR1() {
  return *LoadSpec(std::string(std::getenv("SWITCHYARD_SOURCE_DIR")) + "/models/tiny-r1");
}

TEST(ModelFingerprint, IsStableAndHex) {
  const std::string a = ModelFingerprint(TinyR1(), "digest");
  EXPECT_THAT(a, testing::MatchesRegex("[0-9a-f]{32}"));
  EXPECT_EQ(a, ModelFingerprint(TinyR1(), "digest"));
  EXPECT_NE(a, ModelFingerprint(TinyR1(), "other digest"));
}

TEST(ModelFingerprint, SeesEveryFieldThatChangesANumber) {
  const ModelSpec spec = TinyR1();
  const std::function<void(ModelSpec&)> changes[] = {
      [](ModelSpec& s) { s.norm_eps = 1e-5f; },
      [](ModelSpec& s) { s.layers[1].window = 7; },
      [](ModelSpec& s) { s.layers[1].moe = false; },
      [](ModelSpec& s) { s.gate.scale = 2.4f; },
      [](ModelSpec& s) { s.gate.normalise = false; },
      [](ModelSpec& s) { s.gate.topk_groups = 3; },
      [](ModelSpec& s) { s.experts.swiglu_alpha = 1.5f; },
      [](ModelSpec& s) { s.attention.softmax_scale *= 1.0000002f; },
      [](ModelSpec& s) { s.attention.rope.theta = 10001; },
      [](ModelSpec& s) { s.attention.rope.layout = RopeLayout::kHalfSplit; },
      [](ModelSpec& s) { s.attention.rope.attention_factor = 1.1; },
      [](ModelSpec& s) { s.tied_embeddings = true; },
  };
  for (const auto& change : changes) {
    ModelSpec other = spec;
    change(other);
    EXPECT_NE(CanonicalText(other), CanonicalText(spec));
  }
}

TEST(ModelFingerprint, IgnoresWhatChangesNoNumber) {
  ModelSpec other = TinyR1();
  other.eos_ids = {5};
  other.weight_dtype = DType::kF32;  // each tensor's own dtype is in the content digest
  EXPECT_EQ(ModelFingerprint(other, "d"), ModelFingerprint(TinyR1(), "d"));
}

}  // namespace
}  // namespace switchyard
