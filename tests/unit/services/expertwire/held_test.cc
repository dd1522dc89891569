#include "services/expertwire/held.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace switchyard::expertwire {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Expert = std::pair<int, int>;  // layer, expert
using Range = std::pair<uint32_t, uint32_t>;

constexpr uint32_t kMost = UINT32_MAX;

void Add(int layer, const std::vector<Range>& ranges, HeldList* list) {
  pb::HeldExperts* held = list->Add();
  held->set_layer(layer);
  for (const auto& [first, last] : ranges) held->add_first(first), held->add_last(last);
}

std::vector<Expert> Named(const HeldList& list, int layers, int experts) {
  std::vector<Expert> out;
  ForEachHeld(list, layers, experts, [&](int layer, int expert) {
    out.push_back({layer, expert});
  });
  return out;
}

TEST(HeldTest, WhatIsListedIsRead) {
  constexpr int kLayers = 5, kExperts = 7;
  const auto is_held = [](int layer, int expert) {
    if (layer == 1) return false;
    if (layer == 2) return true;
    return (layer * 31 + expert * 17) % 5 < 2;
  };
  HeldList list;
  AddHeld(kLayers, kExperts, is_held, &list);
  std::vector<Expert> want;
  for (int layer = 0; layer < kLayers; ++layer) {
    for (int e = 0; e < kExperts; ++e) {
      if (is_held(layer, e)) want.push_back({layer, e});
    }
  }
  EXPECT_EQ(Named(list, kLayers, kExperts), want);
  ASSERT_EQ(list.size(), 4);  // a layer without is not listed
  EXPECT_EQ(list.Get(1).layer(), 2);
  EXPECT_THAT(list.Get(1).first(), ElementsAre(0u));  // as few ranges as there can be
  EXPECT_THAT(list.Get(1).last(), ElementsAre(6u));
}

TEST(HeldTest, WhatTheModelHasNotIsSkipped) {
  HeldList list;
  Add(-1, {{0, 3}}, &list);
  Add(INT32_MIN, {{0, 3}}, &list);
  Add(2, {{0, 3}}, &list);
  Add(INT32_MAX, {{0, 3}}, &list);
  Add(1, {{3, 2}, {kMost, 0}, {4, kMost}, {kMost, kMost}, {3, kMost}}, &list);
  EXPECT_THAT(Named(list, 2, 4), ElementsAre(Expert(1, 3)));
  EXPECT_THAT(Named(list, 0, 4), IsEmpty());
  EXPECT_THAT(Named(list, 2, 0), IsEmpty());
}

TEST(HeldTest, ARangeWithoutAnEndIsNone) {
  HeldList list;
  Add(0, {{0, 1}}, &list);
  list[0].add_first(2);
  Add(1, {}, &list);
  list[1].add_last(3);
  EXPECT_THAT(Named(list, 2, 4), ElementsAre(Expert(0, 0), Expert(0, 1)));
}

TEST(HeldTest, OverlapsAndRepetitionsAreNamedAgain) {
  HeldList list;
  Add(1, {{1, 2}, {2, 3}}, &list);
  Add(0, {{0, 0}}, &list);
  Add(1, {{1, 1}}, &list);
  EXPECT_THAT(Named(list, 2, 4), ElementsAre(Expert(1, 1), Expert(1, 2), Expert(1, 2), Expert(1, 3),
                                             Expert(0, 0), Expert(1, 1)));
}

TEST(HeldTest, NoListTakesMoreThanFourTimesTheModel) {
  HeldList list;
  Add(0, std::vector<Range>(100'000, {0, kMost}), &list);
  Add(1, {{0, 0}}, &list);
  const std::vector<Expert> named = Named(list, 2, 256);
  EXPECT_EQ(named.size(), 4u * 2 * 256);
  EXPECT_EQ(named.back(), Expert(0, 255));
}

}  // namespace
}  // namespace switchyard::expertwire
