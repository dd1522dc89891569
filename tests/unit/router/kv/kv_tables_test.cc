#include "router/kv/kv_tables.h"

#include <gtest/gtest.h>

#include <vector>

namespace switchyard::router {
namespace {

TEST(LeastBlocksTest, AWindowAndAChunkSuffice) {
  const auto of = [](std::vector<int> windows, int64_t tokens) {
    return LeastBlocks(windows, tokens);
  };
  EXPECT_EQ(of({0}, 1), 1);
  EXPECT_EQ(of({0}, 1000), 32);
  // 64 rows see 127 before and with them; 191 tokens lie in seven blocks at most.
  EXPECT_EQ(of({128}, 100000), 7);
  EXPECT_EQ(of({128}, 70), 3);
  EXPECT_EQ(of({0, 128}, 100000), 3125 + 7);
  EXPECT_EQ(of({1}, 100000), 3);
}

// Wherever a chunk begins.
TEST(LeastBlocksTest, HoldsForEveryPosition) {
  for (const int window : {1, 2, 31, 32, 33, 34, 64, 100, 128}) {
    const int64_t most = LeastBlocks(std::vector{window}, 100000);
    int64_t seen = 0;
    for (int64_t first = 1000; first < 1000 + kBlockTokens; ++first) {
      seen = std::max(seen, BlocksFor(first + kLeastChunk) - FirstBlockSeen(first, window));
    }
    EXPECT_EQ(most, seen) << window;
  }
}

TEST(KvTablesTest, GroupsWithAWindowTakeTheirBlocksLaterAndGiveThemBack) {
  BlockPool pool(40);
  const std::vector<int> windows = {0, 40};
  KvTables tables(pool, windows, 20 * kBlockTokens);
  tables.Admit(0, 10 * kBlockTokens);
  EXPECT_EQ(tables.group(0).blocks(), 10);
  EXPECT_EQ(tables.group(1).blocks(), 2);
  tables.Grow(6 * kBlockTokens);
  EXPECT_EQ(tables.group(0).blocks(), 10);
  EXPECT_EQ(tables.group(1).blocks(), 6);
  EXPECT_EQ(pool.used(), 16);
  EXPECT_EQ(tables.own_blocks(), 16);
  tables.DropBehind(6 * kBlockTokens);  // sees 153 and later
  EXPECT_EQ(tables.group(0).first(), 0);
  EXPECT_EQ(tables.group(1).first(), 4);
  EXPECT_EQ(pool.used(), 12);
  tables.Clear();
  EXPECT_EQ(pool.used(), 0);
}

TEST(KvTablesTest, AGroupFindsAndSharesItsOwnBlocks) {
  BlockPool pool(40);
  const std::vector<int> windows = {0, 40};
  KvTables a(pool, windows, 20 * kBlockTokens), b(pool, windows, 20 * kBlockTokens);
  KvTables c(pool, windows, 20 * kBlockTokens);
  std::vector<BlockDigest> digests;
  a.Admit(0, 4 * kBlockTokens);
  a.Grow(4 * kBlockTokens);
  for (uint8_t i = 0; i < 4; ++i) {
    digests.push_back({i, i, 7});
    a.Publish(i, digests.back());
  }
  b.ShareFound(digests);
  EXPECT_EQ(b.group(0).first(), 0);
  EXPECT_EQ(b.group(1).first(), 2);  // the token at 128 sees 89 and later
  for (int g = 0; g < 2; ++g) {
    EXPECT_EQ(b.group(g).blocks(), 4);
    EXPECT_EQ(b.group(g).data()[3], a.group(g).data()[3]);
  }
  EXPECT_NE(b.group(0).data()[3], b.group(1).data()[3]);
  EXPECT_EQ(b.own_blocks(), 0);
  EXPECT_EQ(a.own_blocks(), 2);
  c.ShareWith(b, 3);
  EXPECT_EQ(c.group(0).blocks(), 3);
  EXPECT_EQ(c.group(1).first(), 2);
  EXPECT_EQ(c.group(1).data()[2], a.group(1).data()[2]);
  EXPECT_EQ(pool.used(), 8);
  for (KvTables* tables : {&a, &b, &c}) tables->Clear();
  EXPECT_EQ(pool.used(), 0);
}

}  // namespace
}  // namespace switchyard::router
