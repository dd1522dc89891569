#include "router/kv/block_table.h"

#include <gtest/gtest.h>

#include <set>

namespace switchyard::router {
namespace {

TEST(BlockTableTest, GrowsByWholeBlocksInPlace) {
  BlockPool pool(8);
  BlockTable table(pool, 5 * kBlockTokens);
  const int32_t* data = table.data();
  table.Grow(1);
  EXPECT_EQ(table.blocks(), 1);
  const int32_t first = data[0];
  table.Grow(kBlockTokens);
  EXPECT_EQ(table.blocks(), 1);
  table.Grow(kBlockTokens + 1);
  EXPECT_EQ(table.blocks(), 2);
  table.Grow(5 * kBlockTokens);
  EXPECT_EQ(table.data(), data);
  EXPECT_EQ(data[0], first);
  EXPECT_EQ(std::set<int32_t>(data, data + 5).size(), 5u);
  EXPECT_EQ(pool.used(), 5);
  table.Grow(3);  // never shrinks
  EXPECT_EQ(table.blocks(), 5);
}

TEST(BlockTableTest, GivesItsBlocksBack) {
  BlockPool pool(4);
  {
    BlockTable a(pool, 4 * kBlockTokens), b(pool, 4 * kBlockTokens);
    a.Grow(2 * kBlockTokens);
    b.Grow(kBlockTokens);
    a.Clear();
    EXPECT_EQ(a.blocks(), 0);
    EXPECT_EQ(pool.used(), 1);
    b.Grow(4 * kBlockTokens);
    EXPECT_EQ(pool.free(), 0);
  }
  EXPECT_EQ(pool.used(), 0);
}

TEST(BlockTableTest, SharedBlocksComeFirstAndAreNotItsOwn) {
  BlockPool pool(8);
  BlockTable a(pool, 5 * kBlockTokens), b(pool, 5 * kBlockTokens);
  a.Grow(3 * kBlockTokens);
  EXPECT_EQ(a.own_blocks(), 3);
  b.Share(a.data()[0]);
  b.Share(a.data()[1]);
  b.Grow(4 * kBlockTokens);
  EXPECT_EQ(a.own_blocks(), 1);
  EXPECT_EQ(b.own_blocks(), 2);
  EXPECT_EQ(pool.used(), 5);
  a.Clear();
  EXPECT_EQ(pool.used(), 4);
  EXPECT_EQ(b.own_blocks(), 4);
}

TEST(BlockTableTest, PublishedTwiceItIsHeldOnceAndTheEndIsForgottenFirst) {
  BlockPool pool(4);
  BlockTable a(pool, 2 * kBlockTokens), b(pool, 2 * kBlockTokens);
  a.Grow(2 * kBlockTokens);
  b.Grow(2 * kBlockTokens);
  for (uint8_t i = 0; i < 2; ++i) {
    a.Publish(i, BlockDigest{i});
    b.Publish(i, BlockDigest{i});
    EXPECT_EQ(a.data()[i], b.data()[i]);
  }
  EXPECT_EQ(pool.used(), 2);
  a.Clear();
  EXPECT_EQ(b.own_blocks(), 2);
  b.Clear();
  for (int i = 0; i < 3; ++i) pool.Allocate();
  EXPECT_EQ(pool.Find(BlockDigest{1}), -1);
  EXPECT_GE(pool.Find(BlockDigest{0}), 0);
}

TEST(BlockTableTest, TheWindowIsSeenExactly) {
  EXPECT_EQ(FirstBlockSeen(1000, 0), 0);
  EXPECT_EQ(FirstBlockSeen(63, 33), 0);
  EXPECT_EQ(FirstBlockSeen(64, 33), 1);  // sees 32 … 64
  EXPECT_EQ(FirstBlockSeen(31, 64), 0);
  EXPECT_EQ(FirstBlockSeen(32, 1), 1);
}

TEST(BlockTableTest, WhatIsBehindTheWindowIsGivenBack) {
  BlockPool pool(8);
  BlockTable a(pool, 8 * kBlockTokens, 40), b(pool, 8 * kBlockTokens, 40);
  a.Grow(5 * kBlockTokens);
  a.DropBehind(71);  // sees 32 … 71
  EXPECT_EQ(a.first(), 1);
  EXPECT_EQ(a.blocks(), 5);
  EXPECT_EQ(a.data()[0], -1);
  EXPECT_EQ(pool.used(), 4);
  b.Skip(2);
  b.Share(a.data()[2]);
  EXPECT_EQ(b.data()[1], -1);
  EXPECT_EQ(a.own_blocks(), 3) << "one in the middle is shared";
  EXPECT_EQ(b.own_blocks(), 0);
  a.DropBehind(5 * kBlockTokens);
  EXPECT_EQ(a.first(), 3);
  EXPECT_EQ(b.own_blocks(), 1);
  a.Clear();
  b.Clear();
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(a.blocks(), 0);
}

TEST(BlockTableDeathTest, GrowthBeyondItsCapacityEndsTheProcess) {
  BlockPool pool(4);
  BlockTable table(pool, kBlockTokens);
  EXPECT_DEATH(table.Grow(kBlockTokens + 1), "capacity_");
}

}  // namespace
}  // namespace switchyard::router
