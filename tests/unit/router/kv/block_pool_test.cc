#include "router/kv/block_pool.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace switchyard::router {
namespace {

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
  pool.Free(a);
  pool.Free(b);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.Allocate(), b);
  EXPECT_EQ(pool.Allocate(), a);
}

TEST(BlockPoolDeathTest, MisuseEndsTheProcess) {
  BlockPool pool(1);
  const int32_t a = pool.Allocate();
  EXPECT_DEATH(pool.Allocate(), "free_");
  pool.Free(a);
  EXPECT_DEATH(pool.Free(a), "owned_");
  EXPECT_DEATH(pool.Free(7), "block");
}

}  // namespace
}  // namespace switchyard::router
