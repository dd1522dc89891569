#include "router/kv/block_pool.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace switchyard::router {
namespace {

BlockDigest Digest(uint8_t n) { return {n}; }

TEST(BlockPoolTest, GivesEveryBlockOnce) {
  BlockPool pool(5);
  std::set<int32_t> ids;
  for (int i = 0; i < 5; ++i) ids.insert(pool.Allocate());
  EXPECT_EQ(ids, (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(pool.free(), 0);
  EXPECT_EQ(pool.used(), 5);
}

TEST(BlockPoolTest, FreedBlocksComeBackLatestFirst) {
  BlockPool pool(3);
  const int32_t a = pool.Allocate(), b = pool.Allocate();
  pool.Release(a);
  pool.Release(b);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.Allocate(), b);
  EXPECT_EQ(pool.Allocate(), a);
}

TEST(BlockPoolTest, ABlockIsFreeWhenItsLastReferenceGoes) {
  BlockPool pool(2);
  const int32_t a = pool.Allocate();
  pool.Retain(a);
  EXPECT_EQ(pool.references(a), 2);
  pool.Release(a);
  EXPECT_EQ(pool.used(), 1);
  pool.Release(a);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.findable_free(), 0);
}

TEST(BlockPoolTest, APublishedBlockIsFoundUntilItIsTakenAgain) {
  BlockPool pool(2);
  const int32_t a = pool.Allocate();
  EXPECT_EQ(pool.Find(Digest(1)), -1);
  EXPECT_EQ(pool.Publish(a, Digest(1)), a);
  EXPECT_EQ(pool.Find(Digest(1)), a);
  pool.Release(a);
  EXPECT_EQ(pool.free(), 2);
  EXPECT_EQ(pool.findable_free(), 1);
  EXPECT_EQ(pool.Find(Digest(1)), a);
  EXPECT_NE(pool.Allocate(), a);  // while there are others
  EXPECT_EQ(pool.Find(Digest(1)), a);
  EXPECT_EQ(pool.Allocate(), a);
  EXPECT_EQ(pool.Find(Digest(1)), -1);
  EXPECT_EQ(pool.findable_free(), 0);
}

TEST(BlockPoolTest, OfTheFindableTheLeastRecentlyUsedGoesFirst) {
  BlockPool pool(4);
  std::vector<int32_t> ids;
  for (uint8_t i = 0; i < 4; ++i) {
    ids.push_back(pool.Allocate());
    pool.Publish(ids[i], Digest(i));
  }
  for (const int i : {2, 0, 3, 1}) pool.Release(ids[i]);
  pool.Retain(ids[0]);  // out of the middle, and back as the newest
  pool.Release(ids[0]);
  pool.Retain(ids[2]);  // the oldest
  EXPECT_EQ(pool.used(), 1);
  for (const int i : {3, 1, 0}) EXPECT_EQ(pool.Allocate(), ids[i]);
  EXPECT_EQ(pool.free(), 0);
  EXPECT_EQ(pool.Find(Digest(2)), ids[2]);
}

TEST(BlockPoolTest, ASecondBlockOfTheSameDigestTurnsIntoTheFirst) {
  BlockPool pool(3);
  const int32_t a = pool.Allocate(), b = pool.Allocate();
  pool.Publish(a, Digest(1));
  EXPECT_EQ(pool.Publish(b, Digest(1)), a);
  EXPECT_EQ(pool.references(a), 2);
  EXPECT_EQ(pool.used(), 1);
  EXPECT_EQ(pool.Allocate(), b);
  // Also one that nobody uses now.
  pool.Release(a);
  pool.Release(a);
  EXPECT_EQ(pool.Publish(b, Digest(1)), a);
  EXPECT_EQ(pool.references(a), 1);
  EXPECT_EQ(pool.findable_free(), 0);
}

TEST(BlockPoolDeathTest, MisuseEndsTheProcess) {
  BlockPool pool(1);
  const int32_t a = pool.Allocate();
  EXPECT_DEATH(pool.Allocate(), "findable_free_");
  pool.Release(a);
  EXPECT_DEATH(pool.Release(a), "references");
  EXPECT_DEATH(pool.Retain(a), "references");
  EXPECT_DEATH(pool.Release(7), "block");
}

}  // namespace
}  // namespace switchyard::router
