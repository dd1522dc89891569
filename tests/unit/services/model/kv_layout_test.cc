#include "services/model/kv_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <utility>

namespace switchyard {
namespace {

using testing::ElementsAre;

ModelSpec Layers(const std::vector<int>& windows) {
  ModelSpec spec;
  for (const int window : windows) spec.layers.push_back({.window = window});
  return spec;
}

// Every layer has a place of its own, in a group of its window.
void ExpectSound(const ModelSpec& spec) {
  const KvLayout layout = KvLayoutOf(spec);
  ASSERT_EQ(layout.layers.size(), spec.layers.size());
  std::set<std::pair<int, int>> places;
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const KvLayout::Place& place = layout.layers[i];
    EXPECT_TRUE(places.emplace(place.group, place.slot).second);
    EXPECT_LT(place.slot, layout.layers_per_block);
    EXPECT_EQ(layout.windows.at(static_cast<size_t>(place.group)), spec.layers[i].window);
  }
  EXPECT_LE(layout.groups() * layout.layers_per_block - spec.num_layers(), spec.num_layers() / 8);
}

TEST(KvLayoutTest, LayersOfOneWindowAreOneGroup) {
  for (const int window : {0, 128}) {
    const KvLayout layout = KvLayoutOf(Layers({window, window, window}));
    EXPECT_EQ(layout.layers_per_block, 3);
    EXPECT_THAT(layout.windows, ElementsAre(window));
    EXPECT_EQ(layout.layers[2].slot, 2);
    EXPECT_EQ(layout.groups_that_see_all(), window == 0 ? 1 : 0);
  }
  EXPECT_THAT(KvLayoutOf({}).windows, ElementsAre(0));
}

TEST(KvLayoutTest, EveryOtherLayerIsHalfOfThem) {
  const ModelSpec spec = Layers({128, 0, 128, 0, 128, 0});
  const KvLayout layout = KvLayoutOf(spec);
  EXPECT_EQ(layout.layers_per_block, 3);
  EXPECT_THAT(layout.windows, ElementsAre(0, 128));
  EXPECT_EQ(layout.groups_that_see_all(), 1);
  ExpectSound(spec);
  // Nothing is unused where nothing has to be.
  std::vector<int> windows(24);
  for (size_t i = 0; i < windows.size(); i += 2) windows[i] = 128;
  EXPECT_EQ(KvLayoutOf(Layers(windows)).layers_per_block, 12);
}

TEST(KvLayoutTest, UnequalGroupsAreDividedSoThatLittleIsUnused) {
  EXPECT_THAT(KvLayoutOf(Layers({64, 0, 64})).windows, ElementsAre(0, 64, 64));
  std::vector<int> windows(32, 0);
  for (size_t i = 0; i < 4; ++i) windows[i * 8] = 512;
  const KvLayout layout = KvLayoutOf(Layers(windows));
  EXPECT_EQ(layout.layers_per_block, 7);
  EXPECT_THAT(layout.windows, ElementsAre(0, 0, 0, 0, 512));
  for (int alone = 0; alone < 48; ++alone) {
    std::vector<int> some(48, 128);
    std::fill_n(some.begin(), alone, 0);
    if (alone % 3 == 0) some.back() = 32;
    ExpectSound(Layers(some));
    EXPECT_LE(KvLayoutOf(Layers(some)).groups(), 17);
  }
}

}  // namespace
}  // namespace switchyard
